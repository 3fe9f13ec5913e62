"""How long ``automation_baseline`` takes on a full table, killed in the middle and started again. On PostgreSQL.

    python bench/baseline.py [--rows 1000000] [--json FILE]

The table has two definitions; both hold for half of its rows, an immediate and a scheduled event. The command is killed
(SIGKILL) when it has marked half of them, and is started again. At the end each event row must exist exactly once; the
exit code reports that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.run import database  # noqa: E402
from bench.scale import analyze, empty  # noqa: E402

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    with database():
        figures = measure(options.rows)
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2))


def measure(rows: int) -> Figures:
    from bench.growth import execute
    from django_ai.automation.events.models import Event

    print(f"{rows:,} rows ...", file=sys.stderr, flush=True)
    empty()
    execute(
        """INSERT INTO load_eventful (name, ready, due_at)
        SELECT 'row ' || n, n %% 2 = 0, now() + CASE WHEN n %% 2 = 0 THEN -1 ELSE 1 END * interval '30 days'
        FROM generate_series(1, %s) AS n""",
        rows,
    )
    analyze()
    started = time.monotonic()
    first = command()
    while Event.objects.count() < rows // 2:
        if first.poll() is not None:
            raise SystemExit("FAILED: the command ended before it was killed")
        time.sleep(0.5)
    first.kill()
    first.wait()
    killed = time.monotonic() - started
    if command().wait() != 0:
        raise SystemExit("FAILED: the command did not succeed")
    total = time.monotonic() - started
    for name in ("eventful_ready", "eventful_due"):
        found = Event.objects.filter(declared_as=name, status="expired").values("entity_id").distinct().count()
        if found != rows // 2 or Event.objects.filter(declared_as=name).count() != found:
            raise SystemExit(f"FAILED: {found:,} events {name!r}, not {rows // 2:,}")
    return {"seconds until it was killed": killed, "seconds in all": total, "rows per second": rows / total}


def command() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    arguments = ["-m", "django", "automation_baseline", "--model", "load.Eventful"]
    return subprocess.Popen([sys.executable, *arguments], env=environment, cwd=ROOT)


if __name__ == "__main__":
    main()
