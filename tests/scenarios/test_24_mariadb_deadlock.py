"""Scenario 24: MariaDB aborts a transaction (1213), reports a lock timeout (1205), kills a session, or restarts.

A database failure uses up no attempt, and every effect happens exactly once. The claim reads due rows in index order,
so that workers never deadlock with each other.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from django.db import Error, OperationalError, connection, transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, step, workflow
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.apps.story.models import Mark, Probe
from tests.support.blocking_steps import assert_a_lock_timeout_costs_no_try, assert_done_once, finish
from tests.support.marks import only_on
from tests.support.outage import (
    assert_all_once,
    restart_again_and_again,
    until_all_is_done,
    work_for_all,
    workers_that_outlive_it,
)
from tests.support.polling import until
from tests.support.race import OtherThread, until_someone_waits
from tests.support.rows import effects

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(180),
    only_on("mysql", reason="these failures are specific to MariaDB"),
]


@pytest.fixture
def locker(gate, two_rows):
    """Declare a workflow whose step has changed two rows when it stops at the gate.

    InnoDB aborts the transaction that has changed fewer rows, so each test chooses how many the other one changes.
    """
    gate.locker(*two_rows)


def test_24_a_deadlock_chooses_the_step(gate, locker, two_rows):
    first, second = two_rows
    run = engine.start("locker")
    worker = OtherThread(drain)
    gate.wait_until_reached()
    with transaction.atomic():
        # InnoDB rolls back the transaction that has changed fewer rows.
        Reservation.objects.bulk_create([Reservation(note="weight") for _ in range(50)])
        Reservation.objects.filter(pk=second).update(note="web")
        gate.opened.set()
        until_someone_waits()
        Reservation.objects.filter(pk=first).update(note="web")
    worker.join()
    run.refresh_from_db()
    assert (run.status, run.attempt, run.losses, run.data["tries"]) == ("running", 0, 0, 0)
    assert effects() == []
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run)


def test_24_a_deadlock_chooses_the_other(gate, locker, two_rows):
    first, second = two_rows
    run = engine.start("locker")
    worker = OtherThread(drain)
    gate.wait_until_reached()
    # The step has changed two rows by now, and this transaction one.
    with pytest.raises(OperationalError, match="1213"), transaction.atomic():
        Reservation.objects.filter(pk=second).update(note="web")
        gate.opened.set()
        until_someone_waits()
        Reservation.objects.filter(pk=first).update(note="web")
    worker.join()
    run.refresh_from_db()
    assert_done_once(run)


def test_24_a_lock_that_takes_too_long(two_rows):
    """1205 rolls back only the statement, so the worker rolls back the rest of the transaction."""
    assert_a_lock_timeout_costs_no_try(two_rows[0], "SET SESSION innodb_lock_wait_timeout = 1")


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_24_the_session_is_killed_in_the_middle_of_a_step(gate, atomic):
    gate.workflow()
    run = engine.start("gated", atomic=atomic)
    worker = OtherThread(drain)
    gate.wait_until_reached()
    with connection.cursor() as cursor:
        cursor.execute(f"KILL {gate.session}")
    until(lambda: not is_connected(gate.session), 20, "The end of the session")
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert (run.lease, run.losses, run.attempt) == (None, 0, 0)
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run, atomic)


def is_connected(session):
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM information_schema.processlist WHERE id = %s", [session])
        return cursor.fetchone()[0]


def test_24_a_statement_that_takes_too_long_is_the_users_failure():
    @workflow("slow query", default_retry=Retry(max_attempts=1))
    class SlowQuery:
        class Context(BaseModel):
            pass

        @step(start=True)
        def work(self):
            with connection.cursor() as cursor:
                cursor.execute("SET STATEMENT max_statement_time = 0.05 FOR SELECT sleep(30) FROM app_reservation")
            return complete()

    Reservation.objects.create()
    run = engine.start("slow query")
    drain()
    run.refresh_from_db()
    assert run.status == "failed"
    assert "max_statement_time" in run.error


DEFAULT_LANE = WorkflowRun.objects.filter(queue="", priority=0)
"""The columns with which the index for due rows begins on MariaDB."""


def test_24_the_claim_reads_due_rows_in_the_order_of_their_index():
    now = timezone.now()
    WorkflowRun.objects.bulk_create(
        [
            WorkflowRun(name="story:count", created_at=now, wake_at=now + timedelta(hours=number))
            for number in range(500)
        ]
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE TABLE automation_workflows_workflowrun")
        cursor.fetchall()
        due = DEFAULT_LANE.filter(wake_at__lte=now).order_by("wake_at")[:20]
        with transaction.atomic():
            sql, params = due.select_for_update(skip_locked=skips_locked()).query.sql_with_params()
            cursor.execute(f"EXPLAIN {sql}", params)
            (plan,) = (dict(zip([each[0] for each in cursor.description], row, strict=True)) for row in cursor)
    assert "wake" in plan["key"]
    assert plan["type"] == "range"
    assert "filesort" not in (plan["Extra"] or "")


def skips_locked():
    return connection.features.has_select_for_update_skip_locked


def test_24_a_claim_passes_by_what_another_is_claiming():
    """With SKIP LOCKED, the second worker claims the other rows at once, without waiting."""
    if not skips_locked():
        pytest.skip("this server is older than MariaDB 10.6, and has no SKIP LOCKED")
    runs = [engine.start("story:count", steps=1) for _ in range(4)]
    with transaction.atomic():
        held = DEFAULT_LANE.filter(wake_at__isnull=False).select_for_update().order_by("wake_at")[:2]
        pks = {run.pk for run in held}
        found = OtherThread(lambda: claim(WorkflowRun, timezone.now(), 10)).join()
    assert {run.pk for run in found} == {run.pk for run in runs} - pks


def test_24_claimers_and_finishers_never_meet_in_a_circle():
    """Five workers claim, write, reschedule and finish while an operator cancels runs: no deadlock occurs."""
    runs = [engine.start("story:count", steps=3) for _ in range(60)]
    for number in range(20):
        Probe.objects.create(name=str(number), ready=True)
    before = deadlocks()
    workers = [OtherThread(drain) for _ in range(5)]
    for run in runs[::10]:
        engine.cancel(run)
    for worker in workers:
        worker.join()
    finish(runs[-1])
    drain()
    assert deadlocks() == before
    assert WorkflowRun.objects.unfinished().count() == 0
    counted = WorkflowRun.objects.filter(name="story:count")
    done = counted.filter(status="completed").count()
    # A cancelled run keeps the marks of the steps that it has committed.
    assert Mark.objects.filter(name="story:count").count() == sum(run.data["done"] for run in counted)
    assert done >= 54


def deadlocks():
    with connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'")
        return int(cursor.fetchone()[1])


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_24_real_seconds_the_server_dies_in_the_middle_of_a_step(server, gate, atomic):
    gate.workflow()
    run = engine.start("gated", atomic=atomic)
    worker = OtherThread(lambda: drain(heartbeat=True))
    gate.wait_until_reached()
    server.restart()
    gate.opened.set()
    with contextlib.suppress(Error):
        worker.join()
    connection.close()
    finish(run)
    assert_done_once(run, atomic)


@pytest.mark.alone
def test_24_real_seconds_worker_processes_outlive_restarts_of_the_server(server):
    runs = work_for_all(runs=20)
    with workers_that_outlive_it(2):
        restart_again_and_again(server, 0, 3)
        until_all_is_done()
    assert_all_once(runs)
