"""How fast `automation_worker --concurrency` performs steps that wait for a slow service. On PostgreSQL.

    python bench/concurrency.py [--runs 1000] [--seconds 1] [--processes 2] [--concurrency 100] [--connections 20]
                                [--kinds waits,awaits] [--json FILE]

The runs are started first, and then the worker. ``waits`` are plain functions, ``awaits`` are ``async def``; each has
one step with ``atomic=False``. The time runs from the start of the first step to the end of the last. The connections
are the most that were open at once, and the memory is the largest of one process (RSS), both sampled. With
``--concurrency 1`` the worker performs one row after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.run import clear, database  # noqa: E402

Figures = dict[str, float]
SAMPLE_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--kinds", default="waits,awaits")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    with database():
        found = {kind: measure(kind, options) for kind in options.kinds.split(",")}
    for kind, figures in found.items():
        print(f"{kind}: " + ", ".join(f"{name} {value:,.1f}" for name, value in figures.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2))


def measure(kind: str, options: argparse.Namespace) -> Figures:
    from django.db import connection, transaction
    from django.db.models import Max, Min

    from django_ai.automation import engine
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun

    clear()
    with transaction.atomic():
        for _ in range(options.runs):
            engine.start(kind, seconds=options.seconds)
    connections, memory = 0, 0.0
    with worker(options) as pid:
        until = time.monotonic() + 60 + options.runs * options.seconds
        while WorkflowRun.objects.unfinished().exists():
            if time.monotonic() > until:
                raise SystemExit(f"FAILED: {WorkflowRun.objects.unfinished().count()} runs are left.")
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
                connections = max(connections, cursor.fetchone()[0] - 1)
            memory = max(memory, largest_child(pid))
            time.sleep(SAMPLE_SECONDS)
    span = StepExecution.objects.aggregate(first=Min("started"), last=Max("finished"))
    assert StepExecution.objects.filter(outcome="complete").count() == options.runs
    return {
        "seconds": (span["last"] - span["first"]).total_seconds(),
        "connections": connections,
        "MB of one process": memory,
    }


@contextmanager
def worker(options: argparse.Namespace) -> Iterator[int]:
    """Run ``automation_worker``; yield the process ID of its supervisor."""
    command = [sys.executable, "-m", "django", "automation_worker", "--processes", str(options.processes)]
    command += ["--concurrency", str(options.concurrency), "--connections", str(options.connections)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def largest_child(pid: int) -> float:
    """Return the resident memory of the largest child process, in MB."""
    found = [0.0]
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                found.append(int(Path(f"/proc/{child}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6)
    return max(found)


if __name__ == "__main__":
    main()
