"""Throughput and latency of two workers, and the cost of a save(). On PostgreSQL or SQLite.

    python bench/run.py [--database sqlite] [--runtime worker] [--runs 3000] [--flows 1000] [--probes 200]
                        [--timers 100] [--idle 30] [--seconds 20] [--steps 100000] [--pending 1000000] [--repeat 3]
                        [--only throughput,...] [--json FILE]

Throughput: the runs are started first, and then a real ``qcluster`` with two workers, or with ``--runtime worker`` an
``automation_worker`` with two processes. The time runs from the start of the first step to the end of the last, so it
does not include the start of the workers. Latency: from the commit of a ``save()`` to the start of the first step of
the run that its event starts, on idle workers, at irregular times. Lateness: from a sleeping run's ``wake_at`` to its
step. Idle: the processor time of all processes that have nothing to do. ``starts.py`` has the measurements of runs that
a call starts: rates, latency (idle, and at a steady rate for ``--seconds``), and memory over ``--steps`` steps.
``steps.py`` has those of steps that write or are woken, and of events that occur in a save. Only when they are named:
``timers_among_many``, with 100,000 others pending; ``memory``; and ``pending``, which is idle with ``--pending`` timers
of the next days. The figures are medians of ``--repeat`` rounds, as machines are noisy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tools.postgres import server  # noqa: E402

Figures = dict[str, float]
DEFAULTS = (
    ("runs", 3000),
    ("flows", 1000),
    ("probes", 200),
    ("timers", 100),
    ("idle", 30),
    ("seconds", 20),
    ("steps", 100_000),
    ("pending", 1_000_000),
    ("repeat", 3),
)
COMMANDS = {"q2": ["qcluster"], "worker": ["automation_worker", "--processes", "2"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    for name, default in DEFAULTS:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--runtime", choices=("q2", "worker"), default="q2")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--only",
        default="throughput,rates,calls,steady,latency,timers,writes,woken,save,occurrence,idle",
        help="comma-separated measurements, also: timers_among_many, memory, pending",
    )
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = options.runtime
    with sqlite() if options.database == "sqlite" else database():
        figures = measure(options)
    show(figures, options.database)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2))


@contextlib.contextmanager
def sqlite() -> Iterator[None]:
    """Create a SQLite file for the benchmark, and delete it afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ["BENCH_SQLITE"] = str(Path(folder) / "bench.sqlite3")
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0, run_syncdb=True)
        yield


@contextlib.contextmanager
def database() -> Iterator[None]:
    """Create a PostgreSQL database for the benchmark, and drop it afterwards."""
    with server() as environment:
        os.environ.update(environment)
        with _database():
            yield


@contextlib.contextmanager
def _database() -> Iterator[None]:
    import django
    from django.conf import settings
    from django.db import connections

    settings_of = settings.DATABASES["default"]
    name = settings_of["NAME"]
    import psycopg

    admin: dict[str, Any] = {
        "host": settings_of["HOST"] or None,
        "port": settings_of["PORT"] or None,
        "user": settings_of["USER"] or None,
        "password": settings_of["PASSWORD"] or None,
        "dbname": "postgres",
    }
    with psycopg.connect(**{key: value for key, value in admin.items() if value}, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0, run_syncdb=True)
        try:
            yield
        finally:
            connections.close_all()
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextlib.contextmanager
def cluster() -> Iterator[int]:
    """Run two workers of the runtime that was chosen, and yield the process that supervises them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    command = COMMANDS[os.environ["BENCH_RUNTIME"]]
    process = subprocess.Popen(
        [sys.executable, "-m", "django", *command], env=environment, cwd=ROOT, start_new_session=True
    )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def until(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"FAILED: the cluster did not finish within {seconds:g} s; see its output above.")
        time.sleep(pause)


def measure(options: argparse.Namespace) -> Figures:
    from bench import starts, steps

    only = set(filter(None, options.only.split(",")))
    rounds: list[Figures] = []
    for number in range(options.repeat):
        found: Figures = {}
        for name, measurement in (
            ("throughput", throughput),
            ("rates", starts.rates),
            ("calls", starts.latency),
            ("steady", starts.steady),
            ("latency", latency),
            ("timers", timers),
            ("timers_among_many", steps.timers_among_many),
            ("writes", steps.writes),
            ("woken", steps.woken),
            ("save", save_cost),
            ("occurrence", steps.occurrence),
            ("idle", idle_cost),
            ("pending", pending_cost),
            ("memory", starts.memory),
        ):
            if name in only:
                print(f"round {number + 1} of {options.repeat}: {name} ...", file=sys.stderr, flush=True)
                clear()
                found |= measurement(options)
        rounds.append(found)
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


TABLES = (
    "automation_workflows_stepexecution",
    "automation_workflows_signal",
    "automation_workflows_workflowrun",
    "automation_events_callbackexecution",
    "automation_events_event",
    "load_plain",
    "load_eventful",
)


def clear() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            for table in TABLES:
                cursor.execute(f"DELETE FROM {table}")
            return
        cursor.execute(f"TRUNCATE {', '.join(TABLES)} CASCADE")
        cursor.execute("VACUUM ANALYZE")


def throughput(options: argparse.Namespace) -> Figures:
    return {
        "one-step runs per second": _rate("one", options.runs, 1),
        "five-step steps per second": _rate("five", options.flows, 5),
    }


def _rate(name: str, runs: int, steps: int) -> float:
    from django.db import transaction
    from django.db.models import Max, Min

    from django_ai.automation import engine
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun

    clear()
    with transaction.atomic():
        for number in range(runs):
            engine.start(name, number=number)
    with cluster():
        until(lambda: WorkflowRun.objects.unfinished().count() == 0, 120, 0.5)
    span = StepExecution.objects.aggregate(first=Min("started"), last=Max("finished"))
    assert StepExecution.objects.count() == runs * steps
    return runs * steps / (span["last"] - span["first"]).total_seconds()


def latency(options: argparse.Namespace) -> Figures:
    from django.utils import timezone

    from bench.load.models import Eventful
    from django_ai.automation.workflows.models import StepExecution

    delays = []
    with cluster():
        Eventful.objects.create(name="warm up", ready=True)
        until(lambda: StepExecution.objects.count() == 1, 30)
        for number in range(options.probes):
            time.sleep(0.05 + number % 17 / 100)
            saved = timezone.now()
            probe = Eventful.objects.create(name="probe", ready=True)
            runs = StepExecution.objects.filter(run__entity_id=str(probe.pk))
            until(lambda runs=runs: runs.exists(), 10, 0.005)  # type: ignore[misc]
            delays.append((runs.get().started - saved).total_seconds() * 1000)
    delays.sort()
    return {
        "commit to first step, p50, ms": statistics.median(delays),
        "commit to first step, p99, ms": delays[min(len(delays) - 1, int(len(delays) * 0.99))],
    }


def timers(options: argparse.Namespace) -> Figures:
    from django_ai.automation import engine
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun

    with cluster():
        for number in range(options.timers):
            engine.start("timer", seconds=2 + number * 0.037)
        until(lambda: WorkflowRun.objects.unfinished().filter(name="timer").count() == 0, 60)
    late = []
    for run in WorkflowRun.objects.filter(name="timer"):
        slept, woke = StepExecution.objects.filter(run=run).order_by("pk")
        due = slept.finished.timestamp() + run.data["seconds"]
        late.append((woke.started.timestamp() - due) * 1000)
    late.sort()
    return {
        "timers late, p50, ms": statistics.median(late),
        "timers late, p99, ms": late[min(len(late) - 1, int(len(late) * 0.99))],
    }


def save_cost(options: argparse.Namespace) -> Figures:
    from bench.load.models import Eventful, Plain

    def timed(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(300):
            started = time.perf_counter()
            work()
            found.append((time.perf_counter() - started) * 1000)
        return statistics.median(found)

    plain, eventful = Plain.objects.create(name="x"), Eventful.objects.create(name="x")
    return {
        "save() of a new plain model, ms": timed(lambda: Plain.objects.create(name="x")),
        "save() of a new model with 2 events, ms": timed(lambda: Eventful.objects.create(name="x")),
        "save() that changes nothing, plain, ms": timed(plain.save),
        "save() that changes nothing, 2 events, ms": timed(eventful.save),
    }


def idle_cost(options: argparse.Namespace) -> Figures:
    from bench.load.models import Eventful
    from django_ai.automation.workflows.models import StepExecution

    with cluster() as supervisor:
        Eventful.objects.create(name="warm up", ready=True)
        until(lambda: StepExecution.objects.count() == 1, 30)
        time.sleep(5)
        started = {pid: processor_seconds(pid) for pid in with_descendants(supervisor)}
        time.sleep(options.idle)
        used = [(processor_seconds(pid) - before) / options.idle * 100 for pid, before in started.items()]
    return {"idle, all processes, % of a core": sum(used), "idle, the busiest process, % of a core": max(used)}


def pending_cost(options: argparse.Namespace) -> Figures:
    from bench.starts import plan_timers

    plan_timers(options.pending)
    try:
        return {f"{name}, with {options.pending:,} timers": value for name, value in idle_cost(options).items()}
    finally:
        clear()


def with_descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in with_descendants(int(child)))]


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(figures: Figures, database: str) -> None:
    width = max(map(len, figures))
    print(f"\nPython {platform.python_version()}, {os.cpu_count()} cores, 2 workers, {database}, fsync on\n")
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>10,.{1 if value >= 1 else 2}f}")


if __name__ == "__main__":
    main()
