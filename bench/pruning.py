"""The fifth benchmark: does pruning keep up, and what does it cost the timers? On PostgreSQL.

    python bench/pruning.py [--occurrences 100000] [--json FILE]

So many occurrences are old enough to go, each with what it left: its event (of an entity that is gone), its arrival, a
call, a run and its step. One process removes them as workers do, bite by bite; the figure is occurrences in a second,
all their rows included. Then it is done once more while runs become due twenty times a second in the same process: how
late are they?
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
FIRST = 1_000_000
"""The key of the first old row: above those of the runs that become due."""
GAP = 0.05
"""Seconds between two timers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--occurrences", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_EXECUTOR"] = "silent"
    with database():
        figures = {**throughput(wanted.occurrences), **lateness(wanted.occurrences)}
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps(figures, indent=2))


def fill(number: int) -> None:
    """Put in what ``number`` occurrences of 40 days ago have left."""
    from django.utils import timezone

    from django_ai.automation.events.models import CallbackExecution, Event
    from django_ai.automation.queues.models import Arrival, Maintenance
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun

    print(f"{number:,} old occurrences ...", file=sys.stderr, flush=True)
    empty()
    for model in (Arrival, Maintenance):
        model.objects.all().delete()
    moment = timezone.now() - timedelta(days=40)
    keys = range(FIRST, FIRST + number)
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
    copy(Arrival, (Arrival(pk=key, at=moment) for key in range(FIRST, FIRST + number + 1)))
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


def left() -> int:
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
    assert left() == 0, left()
    return {"occurrences pruned in a second": number / took}


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
        due[run.pk] = first + timedelta(seconds=GAP * place)
        WorkflowRun.objects.filter(pk=run.pk).update(wake_at=due[run.pk])
    # With something still to prune at the end, or the timers would have had the worker for themselves.
    drain(heartbeat=True, stop=lambda: timezone.now() > first + timedelta(seconds=GAP * 200 + 1))
    busy = left() > 0
    ended = dict(WorkflowRun.objects.filter(pk__in=due).values_list("pk", "finished_at"))
    late = [(ended[pk] - at).total_seconds() * 1000 for pk, at in due.items()]
    return {
        "timers beside the pruning, late by ms, p50": statistics.median(late),
        "timers beside the pruning, late by ms, p99": statistics.quantiles(late, n=100)[98],
        "and it was still pruning at the end (1: yes)": float(busy),
    }


if __name__ == "__main__":
    main()
