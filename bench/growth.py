"""Whether claiming stays fast with many finished rows. On PostgreSQL.

    python bench/growth.py [--finished 0,5000000,10000000] [--churned 0,10000,100000,600000] [--probes 300]
                           [--kept 1000000] [--json FILE]

First, finished runs are inserted, and due runs are claimed from among them, one by one. Then a transaction with a
snapshot stays open, as a backup or a forgotten shell does, while runs start and end: the database cannot remove their
index entries until that transaction ends. Measured are a worker's poll for due rows and its claim, in milliseconds. The
last lines measure pruning: how long it takes to skip runs that must stay, and how many old runs per second it deletes,
with one step of history each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.support.snapshots import held_snapshot  # noqa: E402

from bench.rows import insert_from  # noqa: E402
from bench.run import database  # noqa: E402
from bench.scale import analyze, empty, timed  # noqa: E402

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--finished", default="0,5000000,10000000")
    parser.add_argument("--churned", default="0,10000,100000,600000")
    parser.add_argument("--kept", type=int, default=1_000_000, help="number of old runs that pruning must keep")
    parser.add_argument("--probes", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    table: dict[str, Figures] = {}
    with database():
        empty()
        present = 0
        for size in map(int, options.finished.split(",")):
            finish(size - present)
            present = size
            analyze()
            table[f"{size:,} finished runs"] = probe(options.probes)
        churned = 0
        with held_snapshot():
            for size in map(int, options.churned.split(",")):
                churn(size - churned)
                churned = size
                table[f"and {size:,} runs since the snapshot"] = probe(options.probes)
        if options.kept:
            table["retention"] = retention(options.kept)
    figures = table.pop("retention", {})
    show(table)
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"growth": table, "retention": figures}, indent=2))


def execute(sql: str, *values: Any) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def insert(number: int, status: str, moment: str, finished: str, wake_at: str) -> None:
    from django_ai.automation.workflows.models import WorkflowRun

    insert_from(
        WorkflowRun,
        "generate_series(1, %s) AS n",
        number,
        name="'bench'",
        version="'1'",
        status=f"'{status}'",
        current_step="'listen'",
        data="""'{"owner": 1, "note": "some text of a common length"}'::jsonb""",
        created_at=moment,
        started_at=moment,
        finished_at=finished,
        seq="3",
        wake_at=wake_at,
        call_key="md5(random()::text)",
    )


def finish(number: int) -> None:
    """Insert ``number`` runs that finished in the last 30 days."""
    print(f"{number:,} finished runs ...", file=sys.stderr, flush=True)
    moment = "now() - interval '30 days' * random()"
    while number > 0:
        insert(min(number, 500_000), "completed", moment, moment, "NULL")
        number -= 500_000


def churn(number: int) -> None:
    """Insert, claim and finish ``number`` runs, as if at a rate of 1,000 per second until now."""
    print(f"{number:,} runs start and end ...", file=sys.stderr, flush=True)
    table = "automation_workflows_workflowrun"
    while number > 0:
        moment = f"clock_timestamp() - interval '{number} ms'"
        insert(min(number, 1000), "running", moment, "NULL", moment)
        lease = "lease = 'bench', wake_at = wake_at + interval '10 s'"
        execute(f"UPDATE {table} SET {lease} WHERE wake_at IS NOT NULL")
        ended = "status = 'completed', wake_at = NULL, lease = NULL, finished_at = clock_timestamp(), seq = seq + 1"
        execute(f"UPDATE {table} SET {ended} WHERE wake_at IS NOT NULL")
        number -= 1000


def probe(probes: int) -> Figures:
    """Make runs due one by one; return the durations of the poll that finds each, and of its claim."""
    from django.utils import timezone

    from django_ai.automation.queues.claim import claim
    from django_ai.automation.queues.due import next_due, scan_start
    from django_ai.automation.workflows.models import WorkflowRun

    polls, claims, idle = [], [], []
    for number in range(probes + 20):
        insert(1, "running", "clock_timestamp()", "NULL", "clock_timestamp()")
        polled = timed(next_due)
        rows: list[Any] = []
        claimed = timed(lambda: rows.extend(claim(WorkflowRun, timezone.now(), 20, scan_start(WorkflowRun))))  # noqa: B023
        assert len(rows) == 1, rows
        WorkflowRun.objects.filter(pk=rows[0].pk).update(status="completed", wake_at=None, lease=None)
        polled_idle = timed(next_due)
        if number >= 20:
            polls.append(polled)
            claims.append(claimed)
            idle.append(polled_idle)
    return {
        f"{what} {name}": value
        for what, found in (("poll", polls), ("claim", claims), ("idle poll", idle))
        for name, value in (("p50", statistics.median(found)), ("p99", statistics.quantiles(found, n=100)[98]))
    }


def retention(kept: int) -> Figures:
    """Prune a table of old runs that must stay, and then delete old runs from among them."""
    from datetime import timedelta

    from django.utils import timezone

    from django_ai.automation.events.models import Event
    from django_ai.automation.queues.periodic_tasks import TimeSlice
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun
    from django_ai.automation.workflows.retention import prune_runs

    empty()
    labels = {"entity_type": "load.note", "entity_id": "1", "event_name": "x", "declared_as": "x"}
    living = Event.objects.create(active_key="living", **labels)
    finish(kept)
    WorkflowRun.objects.update(event=living)
    later = timezone.now() + timedelta(days=90)
    analyze()
    passing = timed(lambda: prune_runs(TimeSlice(later)))
    assert WorkflowRun.objects.count() == kept
    finish(gone := kept // 5)
    insert_from(
        StepExecution,
        f"{WorkflowRun._meta.db_table} WHERE event_id IS NULL",
        run_id="id",
        step="'listen'",
        visit="1",
        attempt="1",
        finished="now()",
        outcome="'complete'",
    )
    analyze()
    removing = timed(lambda: prune_runs(TimeSlice(later)))
    assert (WorkflowRun.objects.count(), StepExecution.objects.count()) == (kept, 0)
    return {
        f"seconds to skip {kept:,} old runs that must stay": passing / 1000,
        f"old runs deleted per second, among {kept:,} that must stay": gone / (removing / 1000),
    }


def show(table: dict[str, Figures]) -> None:
    width = max(map(len, table))
    names = list(next(iter(table.values())))
    print(f"\n{'ms':<{width}}  " + "  ".join(f"{name:>13}" for name in names))
    for name, values in table.items():
        print(f"{name:<{width}}  " + "  ".join(f"{values[each]:>13,.2f}" for each in names))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
