"""The third benchmark: is the next row found as fast when much lies behind it? On PostgreSQL.

    python bench/growth.py [--finished 0,5000000,10000000] [--churned 0,10000,100000,600000] [--probes 300]
                           [--kept 1000000] [--json FILE]

First so many finished runs are put into the table, and due runs are claimed among them, one by one. Then somebody opens
a transaction with a snapshot and leaves it open, as a backup or a forgotten shell does, while runs come and go: what
they leave in the index cannot be cleaned away until that transaction ends. Measured is a worker's look (when is
something due?) and its claim, in milliseconds. The last lines are about pruning: how long it takes to pass by
runs that must stay, and how many old ones it removes in a second, with one step of history each.
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

from bench.run import database  # noqa: E402
from bench.scale import analyze, empty, timed  # noqa: E402

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--finished", default="0,5000000,10000000")
    parser.add_argument("--churned", default="0,10000,100000,600000")
    parser.add_argument("--kept", type=int, default=1_000_000, help="old runs that must stay, in the test of retention")
    parser.add_argument("--probes", type=int, default=300)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_EXECUTOR"] = "silent"
    table: dict[str, Figures] = {}
    with database():
        empty()
        there = 0
        for size in map(int, wanted.finished.split(",")):
            finish(size - there)
            there = size
            analyze()
            table[f"{size:,} finished runs"] = probe(wanted.probes)
        churned = 0
        with held_snapshot():
            for size in map(int, wanted.churned.split(",")):
                churn(size - churned)
                churned = size
                table[f"and {size:,} that came and went since a snapshot"] = probe(wanted.probes)
        if wanted.kept:
            table["retention"] = retention(wanted.kept)
    figures = table.pop("retention", {})
    show(table)
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps({"growth": table, "retention": figures}, indent=2))


def execute(sql: str, *values: Any) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql, values)


COLUMNS = """name, version, status, current_step, data, error, visit, attempt, created_at, started_at, finished_at,
    planned, entity_type, entity_id, parent_channel, caused_by, depth, holds_claims, position, wake_reason, wake_step,
    seq, losses, wake_at"""


def insert(number: int, status: str, moment: str, finished: str, wake_at: str) -> None:
    execute(
        f"""INSERT INTO automation_workflows_workflowrun ({COLUMNS})
        SELECT 'bench', '1', %s, 'listen', '{{"owner": 1, "note": "some text of a common length"}}'::jsonb, '', 1, 0,
            {moment}, {moment}, {finished}, false, '', '', '', '', 0, false, 0, 'first', '', 3, 0,
            {wake_at}
        FROM generate_series(1, %s) AS n""",
        status,
        number,
    )


def finish(number: int) -> None:
    """Put in ``number`` runs that ended in the last weeks."""
    print(f"{number:,} finished runs ...", file=sys.stderr, flush=True)
    moment = "now() - interval '30 days' * random()"
    while number > 0:
        insert(min(number, 500_000), "completed", moment, moment, "NULL")
        number -= 500_000


def churn(number: int) -> None:
    """Let ``number`` runs come, be claimed, and end, as if that had been a thousand in each second until now."""
    print(f"{number:,} runs come and go ...", file=sys.stderr, flush=True)
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
    """Let runs become due one by one; return what it takes to see each, and to claim it."""
    from django.utils import timezone

    from django_ai.automation.queues.claim import claim
    from django_ai.automation.queues.due import next_due, scan_start
    from django_ai.automation.workflows.models import WorkflowRun

    looks, claims, idle = [], [], []
    for number in range(probes + 20):
        insert(1, "running", "clock_timestamp()", "NULL", "clock_timestamp()")
        looked = timed(next_due)
        rows: list[Any] = []
        claimed = timed(lambda: rows.extend(claim(WorkflowRun, timezone.now(), 20, scan_start(WorkflowRun))))  # noqa: B023
        assert len(rows) == 1, rows
        WorkflowRun.objects.filter(pk=rows[0].pk).update(status="completed", wake_at=None, lease=None)
        resting = timed(next_due)
        if number >= 20:
            looks.append(looked)
            claims.append(claimed)
            idle.append(resting)
    return {
        f"{what} {name}": value
        for what, found in (("look", looks), ("claim", claims), ("idle look", idle))
        for name, value in (("p50", statistics.median(found)), ("p99", statistics.quantiles(found, n=100)[98]))
    }


def retention(kept: int) -> Figures:
    """Sweep a table of old runs that must stay, and then remove as many again."""
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
    execute(
        """INSERT INTO automation_workflows_stepexecution
        (run_id, step, visit, attempt, finished, outcome, error, wake_reason)
        SELECT id, 'listen', 1, 1, now(), 'complete', '', 'first' FROM automation_workflows_workflowrun
        WHERE event_id IS NULL"""
    )
    analyze()
    removing = timed(lambda: prune_runs(TimeSlice(later)))
    assert (WorkflowRun.objects.count(), StepExecution.objects.count()) == (kept, 0)
    return {
        f"seconds to pass by {kept:,} old runs that must stay": passing / 1000,
        f"old runs removed in a second, among {kept:,} that must stay": gone / (removing / 1000),
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
