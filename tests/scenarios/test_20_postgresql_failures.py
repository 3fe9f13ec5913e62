"""Scenario 20: PostgreSQL stops immediately, restarts, terminates sessions, or aborts a transaction.

A database failure uses up no attempt, every effect happens exactly once, and the same worker processes continue
automatically as soon as the database answers. Scenario 24 covers MariaDB, and scenario 19 covers SQLite.
"""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, on_event, step, workflow
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes.q2 import Q2Notifier
from django_ai.automation.queues.runtimes.tasks import drain_due
from tests.apps.reservations.models import Reservation, Ticket
from tests.support.blocking_steps import (
    assert_a_lock_timeout_costs_no_try,
    assert_done_once,
    finish,
    session_of_this_thread,
)
from tests.support.child_processes import qcluster
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
from tests.support.rows import effects, leave

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(180),
    only_on("postgresql", reason="these failures are specific to PostgreSQL"),
]

SECOND = timedelta(seconds=1)


@pytest.fixture
def gated(gate):
    gate.workflow()


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_20_real_seconds_the_server_stops_at_once_in_the_middle_of_a_step(server, gate, gated, atomic):
    run = engine.start("gated", atomic=atomic)
    worker = OtherThread(lambda: drain(heartbeat=True))
    gate.wait_until_reached()
    server.restart()
    gate.opened.set()
    with contextlib.suppress(OperationalError):
        worker.join()
    finish(run)
    assert_done_once(run, atomic)


def test_20_real_seconds_a_worker_asks_while_the_server_is_down_and_starting_up(server, gate, gated):
    """Queries that fail while the server is down or starting up do no harm: the run completes once it is up."""
    run = engine.start("gated")
    gate.reached.set()
    server.stop_at_once()
    with pytest.raises(OperationalError):
        drain()
    assert drain_due() == 0  # the outage does not fail the task of the queue
    server.start(wait=False)
    finish(run)
    assert_done_once(run)


def test_20_the_server_says_that_it_starts_up(server):
    """57P03 ("starting up") and similar errors of an unavailable server count as database failures."""
    import psycopg

    from django_ai.automation.db.errors import is_database_failure

    for each in ("CannotConnectNow", "AdminShutdown", "CrashShutdown", "TooManyConnections", "ReadOnlySqlTransaction"):
        error = DatabaseError("the database system is starting up")
        error.__cause__ = getattr(psycopg.errors, each)()
        assert is_database_failure(error, connection)


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_20_the_session_is_killed_in_the_middle_of_a_step(gate, gated, atomic):
    run = engine.start("gated", atomic=atomic)
    worker = OtherThread(drain)
    gate.wait_until_reached()
    terminate(gate.session)
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert (run.lease, run.losses, run.attempt) == (None, 0, 0)  # the same worker released the lease in a new session
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run, atomic)


def terminate(pid):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    until(lambda: not is_connected(pid), 20, "The end of the session")


def is_connected(pid):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid])
        return cursor.fetchone()[0]


def test_20_the_session_is_killed_while_it_claims(gate, gated):
    """A session that is killed while its claim waits for a table lock claims nothing and loses nothing."""
    run = engine.start("gated")
    gate.reached.set()
    found = []

    def work():
        found.append(session_of_this_thread())
        with pytest.raises(OperationalError):
            drain()
        return drain()  # the same worker, a moment later

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE automation_workflows_workflowrun IN SHARE MODE")
        worker = OtherThread(work)
        until_someone_waits()
        terminate(found[0])
    assert worker.join() == 1
    run.refresh_from_db()
    assert_done_once(run)
    assert run.losses == 0


def test_20_real_seconds_the_session_of_the_heartbeat_is_killed(gate, gated, settings):
    """The next heartbeat opens a new session in time: the lease is never lost, and the step runs once."""
    settings.AUTOMATION = {**settings.AUTOMATION, "LEASE": 2 * SECOND, "HEARTBEAT": 0.2 * SECOND}
    run = engine.start("gated", atomic=False)
    worker = OtherThread(lambda: drain(heartbeat=True))
    gate.wait_until_reached()
    milestone = "UPDATE%automation_workflows_workflowrun%wake_at%"

    def heart():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND pid NOT IN (pg_backend_pid(), %s) "
                "AND datname = current_database()",
                [milestone, gate.session],
            )
            return [row[0] for row in cursor.fetchall()]

    (first,) = until(heart, 20, "A beat")
    terminate(first)
    until(lambda: any(pid != first for pid in heart()), 20, "A beat in a new session")
    held = time.monotonic() + 3
    until(lambda: time.monotonic() > held, 10, "More than a lease")
    assert drain() == 0  # no other worker can claim it
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert_done_once(run, atomic=False)
    until(lambda: not heart(), 20, "The end of the heartbeat's session, where there is nothing to keep")


def test_20_real_seconds_a_transaction_that_idles_is_ended_by_the_server(server, gate, gated):
    """A step that idles beyond ``idle_in_transaction_session_timeout`` in its transaction uses up its attempt."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER SYSTEM SET idle_in_transaction_session_timeout = '200ms'")
        cursor.execute("SELECT pg_reload_conf()")
    try:
        run = engine.start("gated")
        worker = OtherThread(drain)
        gate.wait_until_reached()
        until(lambda: not is_connected(gate.session), 20, "The end of the session")
        gate.opened.set()
        worker.join()
        run.refresh_from_db()
        # A retry would idle again, so the attempt counts, and ``run.error`` gives the reason.
        assert (run.status, run.lease, run.losses, run.steps.count()) == ("failed", None, 0, 2)
        assert "idle-in-transaction timeout" in run.error
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM RESET idle_in_transaction_session_timeout")
            cursor.execute("SELECT pg_reload_conf()")


@pytest.fixture
def locker(gate, two_rows):
    gate.locker(*two_rows)


def deadlock(gate, rows: tuple[int, int], *, worker: str, web: str) -> None:
    """Let a worker and a web process lock two rows in opposite orders, each with its own ``deadlock_timeout``.

    A session checks for a deadlock once, after it has waited for its ``deadlock_timeout``, and PostgreSQL aborts it if
    there is one. By then the other session must be waiting, too.
    """
    first, second = rows

    def work():
        with connection.cursor() as cursor:
            cursor.execute(f"SET deadlock_timeout = '{worker}'")
        return drain()

    together = OtherThread(work)
    gate.wait_until_reached()
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL deadlock_timeout = '{web}'")
            Reservation.objects.filter(pk=second).update(note="web")
            gate.opened.set()
            until_someone_waits()
            Reservation.objects.filter(pk=first).update(note="web")  # returns or raises once one of the two was aborted
    finally:
        together.join()


def test_20_a_deadlock_chooses_the_step(gate, locker, two_rows):
    """If PostgreSQL aborts the step to resolve a deadlock, the step runs again without using up an attempt."""
    run = engine.start("locker")
    deadlock(gate, two_rows, worker="2s", web="60s")
    run.refresh_from_db()
    assert (run.status, run.attempt, run.losses, run.data["tries"]) == ("running", 0, 0, 0)
    assert effects() == []
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run)
    assert set(Reservation.objects.values_list("note", flat=True)) == {"step"}


def test_20_a_deadlock_chooses_the_other(gate, locker, two_rows):
    """If PostgreSQL aborts the web process to resolve a deadlock, the first attempt of the step is committed."""
    run = engine.start("locker")
    with pytest.raises(OperationalError, match="deadlock"):
        deadlock(gate, two_rows, worker="60s", web="50ms")
    run.refresh_from_db()
    assert_done_once(run)
    assert set(Reservation.objects.values_list("note", flat=True)) == {"step"}


def test_20_a_serialization_failure(gate, two_rows):
    """A serialization failure (40001) under REPEATABLE READ uses up no attempt, and the step runs again."""
    first, _ = two_rows

    @workflow("serial", default_retry=Retry(max_attempts=1))
    class Serial:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def work(self):
            self.context.tries += 1
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            leave("first")
            note = Reservation.objects.get(pk=first).note
            if not gate.reached.is_set():
                gate.pass_through()
            Reservation.objects.filter(pk=first).update(note=note + "s")
            leave("second")
            return complete()

    run = engine.start("serial")
    worker = OtherThread(drain)
    gate.wait_until_reached()
    with transaction.atomic():
        Reservation.objects.filter(pk=first).update(note="web")
        gate.opened.set()
        until_someone_waits()
    worker.join()
    run.refresh_from_db()
    assert (run.attempt, run.losses, effects()) == (0, 0, [])
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run)
    assert Reservation.objects.get(pk=first).note == "webs"


def test_20_a_deadlock_in_a_callback_costs_no_try(gate, two_rows):
    first, second = two_rows
    tries = []

    @on_event("ticket_closed", name="locking", retry=Retry(max_attempts=1))
    def locking(event):
        tries.append(1)
        Reservation.objects.filter(pk=first).update(note="step")
        if not gate.reached.is_set():
            gate.pass_through()
        Reservation.objects.filter(pk=second).update(note="step")
        leave("callback")

    Ticket.objects.create(open=False)
    execution = CallbackExecution.objects.get(callback="locking")
    deadlock(gate, two_rows, worker="2s", web="60s")
    execution.refresh_from_db()
    assert (execution.status, execution.attempt, execution.losses) == ("pending", 0, 0)
    drain(execution.wake_at)
    execution.refresh_from_db()
    assert (execution.status, len(tries), effects()) == ("completed", 2, ["callback"])


def test_20_a_statement_that_takes_too_long_is_the_users_failure():
    """A statement timeout (57014) would recur at every attempt, so it uses up attempts like any other error."""

    @workflow("slow query", default_retry=Retry(max_attempts=2, base_delay=SECOND))
    class SlowQuery:
        class Context(BaseModel):
            pass

        @step(start=True)
        def work(self):
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = '20ms'")
                cursor.execute("SELECT pg_sleep(30)")
            return complete()

    run = engine.start("slow query")
    drain()
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("waiting", 1)
    drain(run.wake_at)
    run.refresh_from_db()
    assert run.status == "failed"
    assert "statement timeout" in run.error


def test_20_a_lock_timeout_is_a_database_failure(two_rows):
    assert_a_lock_timeout_costs_no_try(two_rows[0], "SET LOCAL lock_timeout = '20ms'")


def test_20_the_web_process_loses_its_session_right_after_its_commit(gate):
    """A worker processes the event of a committed save even if the web process could not claim it."""
    from django_ai.automation.events.commit_batch import CommitBatch

    Reservation.objects.create(status="pending")
    original = CommitBatch.__call__

    def killed(self):
        pid = session_of_this_thread()
        OtherThread(lambda: terminate(pid)).join()
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommitBatch, "__call__", killed)
        stay = Reservation.objects.create(status="confirmed")
    connection.close()
    event = Event.objects.of(stay).get(event_name="reservation_confirmed")
    assert event.status == "pending"
    drain(event.wake_at)
    event.refresh_from_db()
    assert event.status == "processed"
    assert event.occurred_at is not None


@pytest.mark.alone
def test_20_real_seconds_worker_processes_outlive_restarts_of_the_server(server):
    """Three workers survive three restarts, one of them longer than a lease, and every effect happens once."""
    runs = work_for_all()
    with workers_that_outlive_it(3):
        restart_again_and_again(server, 0, 0, 3)
        until_all_is_done()
    assert_all_once(runs)


@pytest.mark.alone
def test_20_real_seconds_a_cluster_outlives_restarts_of_the_server(server, tmp_path):
    log = tmp_path / "cluster.log"
    set_notifier(Q2Notifier())
    try:
        with qcluster(log, TEST_LEASE_SECONDS="2") as process:
            runs = work_for_all()
            restart_again_and_again(server, 0, 3, log=log)
            until_all_is_done(log)
            assert process.poll() is None
    finally:
        set_notifier(None)
    assert_all_once(runs)


@pytest.mark.alone
def test_20_real_seconds_sessions_are_killed_again_and_again(server):
    """If all sessions are killed five times a second, at any point of the work, every effect still happens once."""
    runs = work_for_all()
    with workers_that_outlive_it(2):
        for _ in range(20):
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            time.sleep(0.2)
        until_all_is_done()
    assert_all_once(runs)
