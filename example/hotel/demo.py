"""``make demo``: a hotel's day in under a minute, on a real cluster; it shows what happens and checks all of it.

An hour lasts three seconds. Reservations are saved, moved, cancelled and deleted as a web process would do it; a
``qcluster`` with two workers does the rest. The script ends with a table of what was promised and what was measured,
and exits 0 only if everything happened. ``show/`` has the story, the promises and the screen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from subprocess import Popen

from cluster import command, need, set_up_django, stop_in_order

HOUR = 3.0
START_WITHIN = 10.0
GIVE_UP = 45.0  # with the start and the stop of the cluster this stays below a minute


def main() -> None:
    began = time.monotonic()
    need("rich")
    stop_in_order()
    with tempfile.TemporaryDirectory(prefix="hotel-") as folder:
        log = Path(folder) / "cluster.log"
        set_up_django(
            HOTEL_DATABASE=str(Path(folder) / "demo.sqlite3"), HOTEL_HOUR_SECONDS=str(HOUR), HOTEL_MISHAPS="1"
        )
        from django.core.management import call_command

        from show.day import live_through_the_day
        from show.screen import console, print_summary, print_tail

        call_command("migrate", verbosity=0)
        console.rule(f"[bold]A day at the hotel: one hour lasts {HOUR:.0f} seconds")
        promises = None
        with log.open("wb") as output, command("qcluster", log=output) as cluster:
            if is_ready(cluster, log):
                console.print("qcluster is up, with 2 workers, on a fresh SQLite file\n")
                promises = live_through_the_day(began + GIVE_UP, lambda: cluster.poll() is None)
        if promises is None:
            console.print(f"The cluster ended, or was not ready within {START_WITHIN:.0f} s.", style="red")
        else:
            print_summary(promises, time.monotonic() - began)
        if promises is None or not all(promise.kept for promise in promises):
            print_tail(log)
            sys.exit(1)


def is_ready(cluster: Popen[bytes], log: Path) -> bool:
    """Wait until both workers have said so, and not longer than is decent."""
    deadline = time.monotonic() + START_WITHIN
    while cluster.poll() is None and time.monotonic() < deadline:
        if log.read_text(errors="replace").count("ready for work") >= 2:
            return True
        time.sleep(0.05)
    return False


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped before the day was over; the cluster is stopped, too.")
