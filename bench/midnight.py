"""How fast events that are due at one moment occur, each with a callback, and how long other work waits. On PostgreSQL.

    python bench/midnight.py [--events 300000] [--only drain,worker] [--callbacks none,nothing,write] [--json FILE]

One process performs ``--events`` events whose date is the same: by ``drain`` in this process, or as an
``automation_worker``. Their callbacks touch no table, or write one row through the ORM; or there are none. Meanwhile
another process starts a one-step run every fifth of a second. Measured are events per second, each with its callback;
the processor time of the worker for one; how long after their start these runs ended; and how much the memory of the
process grew after its beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.rows import insert_from  # noqa: E402
from bench.run import database, until  # noqa: E402
from bench.scale import analyze, empty  # noqa: E402

Figures = dict[str, float]
MODELS = {"none": "Unheard", "nothing": "Heard", "write": "Written"}
PROBE_SECONDS = 0.2
MEMORY_AFTER = 1000
"""After how many rows or batches the memory of the process is looked at first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--only", default="drain,worker")
    parser.add_argument("--callbacks", default="none,nothing,write")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    if options.probe:
        probe()
        return
    os.environ["BENCH_RUNTIME"] = "worker"
    figures: Figures = {}
    with database():
        for process in options.only.split(","):
            for callback in options.callbacks.split(","):
                print(f"{process}, {callback} ...", file=sys.stderr, flush=True)
                empty()
                fill(options.events, MODELS[callback])
                found = PROCESSES[process](options.events, callback != "none")
                figures |= {f"{process}, {callback}: {name}": value for name, value in found.items()}
    for name, value in figures.items():
        print(f"{name}: {value:,.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2))


def fill(number: int, model_name: str) -> None:
    """Insert ``number`` entities, each with one event that has just become due."""
    from django.apps import apps
    from django.db import connection
    from django.utils import timezone

    from django_ai.automation.events.models import Event
    from django_ai.automation.events.timing import plan_of
    from django_ai.automation.queues.models import Maintenance

    model = apps.get_model("load", model_name)
    name = f"{model_name.lower()}_due"
    late = timezone.now() - timedelta(seconds=1)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {model._meta.db_table} (due_at) SELECT %s FROM generate_series(1, %s)", [late, number]
        )
    moment = f"'{late.isoformat()}'::timestamptz"
    insert_from(
        Event,
        model._meta.db_table,
        entity_type=f"'{model._meta.label_lower}'", entity_id="id::text", event_name=f"'{name}'",
        declared_as=f"'{name}'", status="'pending'", at=moment, wake_at=moment, event_created_at="now()", armed="true",
        active_key="'due' || id", planned_for=f"'{plan_of(name)}'",
    )  # fmt: skip
    Maintenance.objects.all().delete()
    analyze()


def probe() -> None:
    """Start a run every fifth of a second until the standard input ends."""
    import select

    import django

    django.setup()
    from django_ai.automation import engine

    while not select.select([sys.stdin], [], [], PROBE_SECONDS)[0]:
        engine.start("one")


@contextlib.contextmanager
def probes() -> Iterator[None]:
    command = [sys.executable, str(Path(__file__)), "--probe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ, cwd=ROOT) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def done(number: int, calls: bool) -> bool:
    from django_ai.automation.events.models import CallbackExecution, Event

    if any(model.objects.filter(wake_at__isnull=False).exists() for model in (Event, CallbackExecution)):
        return False
    ended = (
        Event.objects.filter(status="processed").count(),
        CallbackExecution.objects.filter(status="completed").count(),
    )
    if ended != (number, number if calls else 0):
        raise SystemExit(f"FAILED: {ended} events and callbacks have ended, of {number}.")
    return True


def waits() -> Figures:
    """Return how long the runs that were started meanwhile took to end."""
    from django_ai.automation.workflows.models import WorkflowRun

    ended = WorkflowRun.objects.filter(finished_at__isnull=False).values_list("created_at", "finished_at")
    seconds = sorted((end - start).total_seconds() for start, end in ended)
    if len(seconds) < 2:
        return {}
    return {
        "seconds until a fresh run had ended, p50": statistics.median(seconds),
        "seconds until a fresh run had ended, longest": seconds[-1],
    }


def in_process(number: int, calls: bool) -> Figures:
    from django_ai.automation.queues.drain import drain

    first, used = 0.0, 0

    def look() -> bool:
        nonlocal first, used
        used += 1
        if not first and used > MEMORY_AFTER:
            first = memory_now()
        return False

    with probes():
        started, cpu = time.perf_counter(), time.process_time()
        while not done(number, calls):
            drain(heartbeat=True, stop=look)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "events per second": number / took,
        "processor ms for each": cpu * 1000 / number,
        **({"MB that memory grew": memory_now() - first} if first else {}),
        **waits(),
    }


def memory_now() -> float:
    return memory_of(os.getpid())


def memory_of(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def as_worker(number: int, calls: bool) -> Figures:
    from django_ai.automation.events.models import Event

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    command = [sys.executable, "-m", "django", "automation_worker", "--processes", "1"]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as worker:
        try:
            until(lambda: Event.objects.filter(status="processed").exists(), 60)
            with probes():
                started, before = time.perf_counter(), Event.objects.filter(status="processed").count()
                until(lambda: done(number, calls), 3600, pause=0.5)
                took = time.perf_counter() - started
        finally:
            worker.terminate()
            worker.wait(30)
    return {"events per second": (number - before) / took, **waits()}


PROCESSES = {"drain": in_process, "worker": as_worker}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
