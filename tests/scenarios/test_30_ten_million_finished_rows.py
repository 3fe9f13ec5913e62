"""Scenario 30, growth: claiming stays fast regardless of how many finished rows there are.

This is also true while an open snapshot keeps the database from cleaning up. Old rows are deleted in batches. The tests
check query plans and the number of pages read, not durations (`bench/growth.py` measures those with ten million rows).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.queues import due, pruning
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.registry import due_times
from django_ai.automation.queues.runtimes.tasks import cleanup_old, drain_due
from django_ai.automation.workflows.models import StepExecution, WorkflowRun, WorkflowStatus
from tests.support.marks import only_on
from tests.support.snapshots import held_snapshot

pytestmark = pytest.mark.django_db(transaction=True)

TABLE = WorkflowRun._meta.db_table
INDEX = "automation_run_wake"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    due.reset()
    yield
    due.reset()


def finished_runs(doublings: int) -> int:
    """Insert 2 ** ``doublings`` finished runs, as fast as the database can, and return their number."""
    moment = timezone.now() - timedelta(days=3)
    WorkflowRun.objects.create(
        name="old", status="completed", current_step="s", data={"a": 1}, created_at=moment, finished_at=moment
    )
    columns = ", ".join(
        connection.ops.quote_name(field.column) for field in WorkflowRun._meta.concrete_fields if not field.primary_key
    )
    with connection.cursor() as cursor:
        for _ in range(doublings):
            cursor.execute(f"INSERT INTO {TABLE} ({columns}) SELECT {columns} FROM {TABLE}")
        analyze = {"postgresql": "VACUUM ANALYZE {}", "sqlite": "ANALYZE {}", "mysql": "ANALYZE TABLE {}"}
        cursor.execute(analyze[connection.vendor].format(TABLE))
    return 2**doublings


def statement(work) -> str:
    """Return the first SQL statement on the table of runs that ``work`` executes."""
    with CaptureQueriesContext(connection) as queries:
        work()
    return next(each["sql"] for each in queries if TABLE in each["sql"])


def plan_of(sql: str) -> str:
    how = {"postgresql": "EXPLAIN ", "sqlite": "EXPLAIN QUERY PLAN ", "mysql": "EXPLAIN "}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(how + sql)
        return "\n".join(str(row) for row in cursor.fetchall())


def pages_read(sql: str) -> int:
    """Run ``sql``, roll it back, and return how many pages PostgreSQL read for it, from its cache or not."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}")
        (found,) = cursor.fetchone()
        transaction.set_rollback(True)
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def come_and_go(number: int) -> None:
    """Create, claim and finish ``number`` runs, with times as if there had been ten per second until now."""
    for part in range(number, 0, -500):
        made = timezone.now() - timedelta(seconds=part / 10)
        WorkflowRun.objects.bulk_create(
            WorkflowRun(name="gone", wake_at=made + timedelta(milliseconds=each % 77), created_at=made)
            for each in range(500)
        )
        gone = WorkflowRun.objects.filter(name="gone", wake_at__isnull=False)
        gone.update(lease="somebody", wake_at=F("wake_at") + timedelta(seconds=10))
        gone.update(lease=None, wake_at=None, status="completed", finished_at=made)
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {TABLE}")


# -- plans, on every database ------------------------------------------------------------------------------------------


def test_30_a_claim_and_a_look_use_the_index_whatever_is_finished():
    many = finished_runs(16)
    for _ in range(30):
        engine.start("story:count", steps=1)
    looked = plan_of(statement(due_times))
    claiming = statement(lambda: claim(WorkflowRun, timezone.now(), 5))
    plan = plan_of(claiming)
    if connection.vendor == "mysql":
        assert INDEX in plan
        assert str(many) not in plan  # the number of rows that the plan expects to read
        assert "Select tables optimized away" in looked or INDEX in looked
    else:
        assert INDEX in plan, plan
        assert INDEX in looked, looked
        for scan in (f"Seq Scan on {TABLE}", f"SCAN {TABLE}"):
            assert not [line for line in f"{plan}\n{looked}".splitlines() if scan in line and INDEX not in line]
    assert len(claim(WorkflowRun, timezone.now(), 5)) == 5


@only_on("postgresql", reason="only PostgreSQL has EXPLAIN (ANALYZE, BUFFERS)")
def test_30_a_claim_reads_as_few_pages_among_many_as_among_few():
    engine.start("story:count", steps=1)
    sql = statement(lambda: claim(WorkflowRun, timezone.now(), 20))
    WorkflowRun.objects.update(lease=None, wake_at=timezone.now() - timedelta(seconds=1))
    few = pages_read(sql)
    WorkflowRun.objects.update(lease=None, wake_at=None)
    finished_runs(16)
    engine.start("story:count", steps=1)
    many = pages_read(statement(lambda: claim(WorkflowRun, timezone.now(), 20)))
    assert many <= few + 30, (few, many)


# -- open snapshots ----------------------------------------------------------------------------------------------------


@only_on("postgresql", reason="only PostgreSQL has EXPLAIN (ANALYZE, BUFFERS); SQLite cleans its indexes at once")
def test_30_a_held_snapshot_does_not_make_looks_and_claims_longer(monkeypatch):
    finished_runs(12)
    monkeypatch.setattr(due, "SLOW_SCAN_SECONDS", 0.0)
    with held_snapshot():
        come_and_go(10_000)
        engine.start("story:count", steps=1)
        everywhere = pages_read(statement(lambda: claim(WorkflowRun, timezone.now(), 20)))
        look_everywhere = pages_read(statement(due_times))
        WorkflowRun.objects.filter(lease__isnull=False).update(lease=None, wake_at=timezone.now())
        due.next_due()
        due.next_due()
        beginning = due.scan_start(WorkflowRun)
        assert beginning is not None
        bounded = pages_read(statement(lambda: claim(WorkflowRun, timezone.now(), 20, beginning)))
        look_bounded = pages_read(statement(due.next_due))
    assert min(everywhere, look_everywhere) > 1000, "the index has no dead entries, so this test proves nothing"
    assert bounded < everywhere / 5, (everywhere, bounded)
    assert look_bounded < look_everywhere / 5, (look_everywhere, look_bounded)


# -- no row is missed --------------------------------------------------------------------------------------------------


@pytest.fixture
def dear(monkeypatch):
    """Make every scan count as slow; return the clock that limits how long scans may skip rows."""
    watch = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(due, "time", SimpleNamespace(monotonic=lambda: watch.now))
    monkeypatch.setattr(due, "SLOW_SCAN_SECONDS", -1.0)
    return watch


def status(run: WorkflowRun) -> str:
    run.refresh_from_db()
    return run.status


def remember() -> None:
    due.next_due()
    due.next_due()
    assert due.scan_start(WorkflowRun) is not None


def test_30_quick_looks_remember_nothing(monkeypatch):
    monkeypatch.setattr(due, "SLOW_SCAN_SECONDS", 1000.0)
    for _ in range(5):
        due.next_due()
    assert due.scan_start(WorkflowRun) is None


def test_30_one_dear_look_may_be_the_machines_mood(dear):
    due.next_due()
    assert due.scan_start(WorkflowRun) is None
    due.next_due()
    assert due.scan_start(WorkflowRun) is not None


def test_30_what_becomes_due_now_is_done_at_once(dear):
    remember()
    run = engine.start("story:count", steps=1)
    late = engine.start("story:count", steps=1)
    # Its transaction took a few seconds to commit.
    WorkflowRun.objects.filter(pk=late.pk).update(wake_at=timezone.now() - timedelta(seconds=3))
    drain_due()
    assert (status(run), status(late)) == (WorkflowStatus.COMPLETED, WorkflowStatus.COMPLETED)


def test_30_what_becomes_due_far_back_is_done_some_seconds_later(dear):
    remember()
    run = engine.start("story:count", steps=1)
    WorkflowRun.objects.filter(pk=run.pk).update(wake_at=timezone.now() - timedelta(days=1))
    drain_due()
    assert status(run) == WorkflowStatus.RUNNING
    dear.now += due.MIN_SKIP_SECONDS + 0.1
    drain_due()
    assert status(run) == WorkflowStatus.COMPLETED


def test_30_no_rest_is_longer_than_a_minute(dear, monkeypatch):
    def slow(since=None, **options):
        dear.now += 3600.0
        return due_times(since, **options)

    monkeypatch.setattr(due, "due_times", slow)
    remember()
    run = engine.start("story:count", steps=1)
    WorkflowRun.objects.filter(pk=run.pk).update(wake_at=timezone.now() - timedelta(days=1))
    monkeypatch.setattr(due, "due_times", due_times)
    dear.now += due.MAX_SKIP_SECONDS + 0.1
    drain_due()
    assert status(run) == WorkflowStatus.COMPLETED


def test_30_a_backlog_is_worked_off_from_its_beginning(dear):
    """If rows have been due for a long time, the next scans start at the oldest of them."""
    runs = [engine.start("story:count", steps=1) for _ in range(3)]
    for number, run in enumerate(runs):
        WorkflowRun.objects.filter(pk=run.pk).update(wake_at=timezone.now() - timedelta(days=3 - number))
    remember()
    first = due.scan_start(WorkflowRun)
    assert timezone.now() - first > timedelta(days=2)
    assert [row.pk for row in claim(WorkflowRun, timezone.now(), 1, first)] == [runs[0].pk]
    drain_due()
    assert [status(run) for run in runs[1:]] == [WorkflowStatus.COMPLETED] * 2


def test_30_a_drain_at_a_given_moment_looks_at_everything(dear):
    remember()
    run = engine.start("story:count", steps=1)
    WorkflowRun.objects.filter(pk=run.pk).update(wake_at=timezone.now() - timedelta(days=1))
    drain(timezone.now())
    assert status(run) == WorkflowStatus.COMPLETED


# -- retention ---------------------------------------------------------------------------------------------------------


def test_30_old_rows_go_in_batches_and_their_history_with_them():
    many = finished_runs(11)
    run = engine.start("story:count", steps=3)
    drain()
    StepExecution.objects.bulk_create(
        StepExecution(run_id=pk, step="s", visit=1, attempt=1, finished=timezone.now(), outcome="complete")
        for pk in WorkflowRun.objects.filter(name="old").values_list("pk", flat=True)
    )
    with CaptureQueriesContext(connection) as queries:
        assert cleanup_old(timezone.now() + timedelta(days=28)) == many
    assert list(WorkflowRun.objects.all()) == [run]
    assert StepExecution.objects.filter(run=run).exists()
    assert not StepExecution.objects.exclude(run=run).exists()
    deletes = [each["sql"] for each in queries if each["sql"].startswith("DELETE")]
    assert len([sql for sql in deletes if f"{TABLE}" in sql]) >= many / pruning.BATCH_ROWS
    assert max(sql.count(",") for sql in deletes) < pruning.WINDOW_KEYS
