"""Whether claiming stays fast with many runs queued on one key, and what a limit costs. On PostgreSQL.

    python bench/limits.py [--queued 0,10000,100000] [--probes 200] [--runs 1000] [--json FILE]

For each size, that many runs wait for their turn on one key of ``Concurrency(3, key=...)``. Measured are a worker's
poll for due rows, the claim of a run that is due, the request with which one more run joins the queue, and the look at
the queue after a release, which admits the next one; in milliseconds. The last lines measure the runs per second of
one process, of a workflow of one step without a limit and with one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.growth import show  # noqa: E402
from bench.rows import insert_from  # noqa: E402
from bench.run import database  # noqa: E402
from bench.scale import analyze, empty, timed  # noqa: E402

Figures = dict[str, float]
KEY = "one"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--queued", default="0,10000,100000")
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    table: dict[str, Figures] = {}
    with database():
        declare()
        for size in map(int, options.queued.split(",")):
            fill(size)
            table[f"{size:,} queued runs"] = probe(options.probes)
        rates = {name: rate(name, options.runs) for name in ("bench:free", "bench:limited", "bench:crowded")}
        starts = pace()
    show(table)
    labels = {
        "bench:free": "runs per second without a limit",
        "bench:limited": "runs per second of a limit with a place for each",
        "bench:crowded": "runs per second of a limit of one",
    }
    for name, value in rates.items():
        print(f"{labels[name]}: {value:,.0f}")
    print(f"starts in each second of Throttle(10, per=1 s), four workers: {', '.join(map(str, starts))}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"limits": table, "rates": rates}, indent=2))


def declare() -> None:
    from pydantic import BaseModel

    from django_ai.automation import Concurrency, complete, step, workflow

    class Job(BaseModel):
        group: str = KEY

    class Body:
        Context = Job

        @step(start=True)
        def only(self) -> Any:
            return complete()

    for name, limit in (
        ("bench:free", None),
        ("bench:limited", Concurrency(100, key="{{ ctx.group }}")),
        ("bench:crowded", Concurrency(1, key="{{ ctx.group }}")),
        ("bench:queue", Concurrency(3, key="{{ ctx.group }}")),
    ):
        workflow(name, concurrency=limit)(type(name, (Body,), {"__module__": __name__}))


def pace(seconds: int = 8) -> list[int]:
    """Return how many runs four workers started in each whole second of a throttle of ten per second."""
    import threading
    from collections import Counter
    from datetime import timedelta

    from django.db import connections, transaction
    from pydantic import BaseModel

    from django_ai.automation import Throttle, complete, engine, step, workflow
    from django_ai.automation.queues.drain import drain

    begun: list[float] = []

    @workflow("bench:paced", throttle=Throttle(10, per=timedelta(seconds=1)))
    class Paced:
        class Context(BaseModel):
            pass

        @step(start=True)
        def only(self) -> Any:
            begun.append(time.time())
            return complete()

    print("bench:paced ...", file=sys.stderr, flush=True)
    empty_with_slots()
    with transaction.atomic():
        for _ in range(10 * (seconds + 4)):
            engine.start("bench:paced")
    until = time.monotonic() + seconds + 2

    def work() -> None:
        while time.monotonic() < until:
            drain()
            time.sleep(0.01)
        connections.close_all()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counted = Counter(int(moment - begun[0]) for moment in begun)
    return [counted[second] for second in range(1, seconds)]


def fill(size: int) -> None:
    """Let three runs hold what there is, and ``size`` runs wait."""

    from django_ai.automation import engine
    from django_ai.automation.queues.models import Limiter, Slot
    from django_ai.automation.workflows.models import WorkflowRun

    print(f"{size:,} queued runs ...", file=sys.stderr, flush=True)
    empty_with_slots()
    for _ in range(3):
        run = engine.start("bench:queue")
        WorkflowRun.objects.filter(pk=run.pk).update(wake_at=None, lease="bench")
        request(run)
    limiter = Limiter.objects.get()
    insert_from(
        WorkflowRun,
        "generate_series(1, %s)",
        size,
        name="'bench:queue'",
        version="'1'",
        status="'waiting'",
        current_step="'only'",
        data="""'{"group": "one"}'::jsonb""",
        created_at="now()",
        call_key="md5(random()::text)",
    )
    insert_from(
        Slot,
        f"{WorkflowRun._meta.db_table} WHERE wake_at IS NULL AND lease IS NULL",
        limiter_id=str(limiter.pk),
        row_kind="'workflow'",
        row_pk="id",
        state="'queued'",
        created_at="now()",
        unique_key="md5(id::text)",
    )
    analyze()


def empty_with_slots() -> None:
    from django.db import connection

    from django_ai.automation.queues.models import Limiter, Slot

    empty()
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {Limiter._meta.db_table}, {Slot._meta.db_table} CASCADE")


def request(run: Any) -> bool:
    """Let a leased run ask for a slot of its limit."""
    from django.utils import timezone

    from django_ai.automation.workflows.definitions import workflow_of
    from django_ai.automation.workflows.run_limits import acquire_slots
    from django_ai.automation.workflows.run_session import RunSession, next_entry

    run.refresh_from_db()
    definition = workflow_of(run)
    return acquire_slots(RunSession(run, definition, next_entry(run, definition), timezone.now))


def probe(probes: int) -> Figures:
    from django.utils import timezone

    from django_ai.automation import engine
    from django_ai.automation.queues.claim import claim
    from django_ai.automation.queues.due import next_due
    from django_ai.automation.queues.limits.admission import perform_slots
    from django_ai.automation.queues.models import Slot
    from django_ai.automation.workflows.models import WorkflowRun

    found: dict[str, list[float]] = {"poll": [], "claim": [], "join": [], "admit": []}
    for number in range(probes + 20):
        engine.start("bench:queue")
        rows: list[Any] = []
        times = {"poll": timed(next_due), "claim": timed(lambda: rows.extend(claim(WorkflowRun, timezone.now(), 20)))}  # noqa: B023
        (run,) = rows
        times["join"] = timed(lambda: request(run))  # noqa: B023
        held = Slot.objects.filter(state="held").order_by("pk").first()
        WorkflowRun.objects.filter(pk=held.row_pk).update(status="completed", lease=None)
        Slot.objects.filter(pk=held.pk).update(state="released", unique_key=None, wake_at=timezone.now())
        released = claim(Slot, timezone.now(), 20)
        times["admit"] = timed(lambda: perform_slots(released, timezone.now))  # noqa: B023
        WorkflowRun.objects.filter(wake_at__isnull=False).update(wake_at=None, lease="bench")
        if number >= 20:
            for name, value in times.items():
                found[name].append(value)
    return {
        f"{what} {name}": value
        for what, values in found.items()
        for name, value in (("p50", statistics.median(values)), ("p99", statistics.quantiles(values, n=100)[98]))
    }


def rate(name: str, runs: int) -> float:
    from django.db import transaction

    from django_ai.automation import engine
    from django_ai.automation.queues.drain import drain
    from django_ai.automation.workflows.models import WorkflowRun

    print(f"{name} ...", file=sys.stderr, flush=True)
    empty_with_slots()  # the keys begin again at 1, and slots of other runs with these keys must not be found
    with transaction.atomic():
        for _ in range(runs):
            engine.start(name)
    analyze()
    started = time.perf_counter()
    drain(heartbeat=True)
    seconds = time.perf_counter() - started
    assert WorkflowRun.objects.filter(status="completed").count() == runs
    return runs / seconds


if __name__ == "__main__":
    main()
