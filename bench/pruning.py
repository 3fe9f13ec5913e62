"""Whether pruning keeps up with new rows, and how late it makes timers. On PostgreSQL.

    python bench/pruning.py [--occurrences 100000] [--json FILE]

One process prunes old occurrences as workers do, in time slices. Each has an event (of a deleted entity), an arrival, a
callback execution, a run and a step. The first figure is occurrences per second, with all their rows. Then the same is
done while twenty runs per second become due in the same process, and the lateness of these runs is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.run import database  # noqa: E402
from bench.scale import analyze, copy, empty  # noqa: E402

Figures = dict[str, float]
FIRST_OLD_PK = 1_000_000
"""Primary key of the first old row: greater than those of the runs that become due."""
TIMER_INTERVAL_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--occurrences", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    with database():
        figures = {**throughput(options.occurrences), **lateness(options.occurrences)}
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2))


def fill(number: int) -> None:
    """Insert the rows of ``number`` occurrences of 40 days ago."""
    from django.utils import timezone

    from django_ai.automation.events.models import CallbackExecution, Event
    from django_ai.automation.queues.models import Arrival, Maintenance
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun

    print(f"{number:,} old occurrences ...", file=sys.stderr, flush=True)
    empty()
    for model in (Arrival, Maintenance):
        model.objects.all().delete()
    moment = timezone.now() - timedelta(days=40)
    keys = range(FIRST_OLD_PK, FIRST_OLD_PK + number)
    copy(
        Event,
        (
            Event(
                pk=key, entity_type="load.note", entity_id=str(key), event_name="noted", declared_as="noted",
                status="processed", event_created_at=moment, occurred_at=moment, position=key,
            )
            for key in keys
        ),
    )  # fmt: skip
    copy(Arrival, (Arrival(pk=key, at=moment) for key in range(FIRST_OLD_PK, FIRST_OLD_PK + number + 1)))
    copy(
        CallbackExecution,
        (
            CallbackExecution(
                pk=key, event_id=key, callback="bench", status="completed", unique_key=str(key), created_at=moment,
                finished_at=moment,
            )
            for key in keys
        ),
    )  # fmt: skip
    copy(
        WorkflowRun,
        (
            WorkflowRun(pk=key, name="one", status="completed", event_id=key, created_at=moment, finished_at=moment)
            for key in keys
        ),
    )
    copy(
        StepExecution,
        (
            StepExecution(pk=key, run_id=key, step="only", visit=1, attempt=1, finished=moment, outcome="complete")
            for key in keys
        ),
    )
    analyze()


def remaining() -> int:
    """Return how many of the old rows are left."""
    from django_ai.automation.events.models import CallbackExecution, Event
    from django_ai.automation.queues.models import Arrival
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun

    old = WorkflowRun.objects.filter(status="completed", event__isnull=False)
    others = sum(model.objects.count() for model in (Event, CallbackExecution))
    return (
        others + max(Arrival.objects.count() - 1, 0) + old.count() + StepExecution.objects.filter(run__in=old).count()
    )


def throughput(number: int) -> Figures:
    from django.utils import timezone

    from django_ai.automation.queues.drain import drain
    from django_ai.automation.queues.maintenance import ensure_rows
    from django_ai.automation.queues.models import Maintenance

    fill(number)
    ensure_rows(timezone.now())
    started = time.perf_counter()
    drain(models=[Maintenance])
    took = time.perf_counter() - started
    assert remaining() == 0, remaining()
    return {"occurrences pruned per second": number / took}


def lateness(number: int) -> Figures:
    from django.utils import timezone

    from django_ai.automation import engine
    from django_ai.automation.queues import maintenance
    from django_ai.automation.queues.drain import drain
    from django_ai.automation.workflows.models import WorkflowRun

    fill(number)
    maintenance._next_row_check.clear()
    first = timezone.now() + timedelta(seconds=3)
    due = {}
    for place in range(200):
        run = engine.start("one", number=place)
        due[run.pk] = first + timedelta(seconds=TIMER_INTERVAL_SECONDS * place)
        WorkflowRun.objects.filter(pk=run.pk).update(wake_at=due[run.pk])
    # Rows must be left to prune at the end, or the last timers would not have competed with the pruning.
    drain(heartbeat=True, stop=lambda: timezone.now() > first + timedelta(seconds=TIMER_INTERVAL_SECONDS * 200 + 1))
    is_still_pruning = remaining() > 0
    ended = dict(WorkflowRun.objects.filter(pk__in=due).values_list("pk", "finished_at"))
    if None in ended.values():
        raise SystemExit(f"FAILED: {number:,} occurrences were pruned before the last timer; use more --occurrences.")
    late = [(ended[pk] - at).total_seconds() * 1000 for pk, at in due.items()]
    return {
        "lateness of timers during pruning, ms, p50": statistics.median(late),
        "lateness of timers during pruning, ms, p99": statistics.quantiles(late, n=100)[98],
        "rows were left to prune at the end (1: yes)": float(is_still_pruning),
    }


if __name__ == "__main__":
    main()
