"""``make demo``: a day at the hotel in under a minute, on a real cluster. It shows what happens and checks the results.

An hour lasts three seconds. The script saves, moves, cancels and deletes reservations as a web process would; a
``qcluster`` with two workers performs the automations. At the end it prints each promise with what was measured, and
exits with 0 only if all promises were kept. ``show/`` has the story, the promises and the output.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from subprocess import Popen

from cluster import command, exit_on_signals, need, set_up_django

SECONDS_PER_HOUR = 3.0
START_TIMEOUT_SECONDS = 10.0
DAY_TIMEOUT_SECONDS = 45.0  # together with starting and stopping the cluster, less than a minute


def main() -> None:
    started = time.monotonic()
    need("rich")
    exit_on_signals()
    with tempfile.TemporaryDirectory(prefix="hotel-") as folder:
        log = Path(folder) / "cluster.log"
        set_up_django(
            HOTEL_DATABASE=str(Path(folder) / "demo.sqlite3"),
            HOTEL_HOUR_SECONDS=str(SECONDS_PER_HOUR),
            HOTEL_FAULTS="1",
        )
        from django.core.management import call_command

        from show.day import run_day
        from show.screen import console, print_summary, print_tail

        call_command("migrate", verbosity=0)
        console.rule(f"[bold]A day at the hotel: one hour lasts {SECONDS_PER_HOUR:.0f} seconds")
        promises = None
        with log.open("wb") as output, command("qcluster", log=output) as cluster:
            if is_ready(cluster, log):
                console.print("qcluster is up, with 2 workers, on a fresh SQLite file\n")
                promises = run_day(started + DAY_TIMEOUT_SECONDS, lambda: cluster.poll() is None)
        if promises is None:
            console.print(
                f"FAILED: the cluster ended, or was not ready within {START_TIMEOUT_SECONDS:.0f} s.", style="red"
            )
        else:
            print_summary(promises, time.monotonic() - started)
        if promises is None or not all(promise.kept for promise in promises):
            print_tail(log)
            sys.exit(1)


def is_ready(cluster: Popen[bytes], log: Path) -> bool:
    """Wait until both workers have reported that they are ready; return whether they did in time."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while cluster.poll() is None and time.monotonic() < deadline:
        if log.read_text(errors="replace").count("ready for work") >= 2:
            return True
        time.sleep(0.05)
    return False


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted. The cluster is stopped, too.")
