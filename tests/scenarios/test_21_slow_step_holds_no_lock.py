"""Scenario 21: a slow step holds no lock, so an operator who cancels it does not wait for it.

Even an atomic step does not lock its own run before it ends, so a cancellation returns at once, and the late commit of
the step is refused. The rows that an atomic step writes are locked until it ends, as in any transaction. On SQLite this
lock covers the whole database, so slow steps should use ``atomic=False`` there.
"""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection
from django.test import Client
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import agent, engine, handler, on_event
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.queues.drain import drain
from tests.apps.reservations.models import Reservation
from tests.support.marks import not_on, only_on
from tests.support.race import OtherThread
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

needs_row_locks = not_on("sqlite", reason="SQLite has one lock for the whole database")


@pytest.fixture
def slow(gate):
    """Return a function that starts a run and returns it in the middle of its step, ``atomic`` or not."""

    def begin(atomic):
        gate.workflow()
        run = engine.start("gated", atomic=atomic)
        worker = OtherThread(drain)
        gate.wait_until_reached()
        return run, worker

    return begin


def transactions_of(session):
    """Return how many open transactions and locks on automation tables the server reports for a session."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT count(*) FROM pg_locks LEFT JOIN pg_class ON pg_class.oid = relation "
                "WHERE pid = %s AND (locktype = 'transactionid' "
                "OR relname LIKE 'automation%%' AND mode <> 'AccessShareLock')",
                [session],
            )
        else:
            cursor.execute(
                "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = %s", [session]
            )
        return cursor.fetchone()[0]


@needs_row_locks
def test_21_outside_a_transaction_nothing_is_open_and_nothing_is_locked(slow, gate):
    _, worker = slow(False)
    assert transactions_of(gate.session) == 0
    gate.opened.set()
    worker.join()
    assert effects() == ["second"]


@needs_row_locks
def test_21_in_a_transaction_the_run_itself_is_not_locked(slow, gate):
    """Only the rows that the step wrote are locked: other sessions can write all rows of the automations."""
    run, worker = slow(True)
    with connection.cursor() as cursor:
        cursor.execute(
            "SET lock_timeout = '1s'" if connection.vendor == "postgresql" else "SET innodb_lock_wait_timeout = 1"
        )
    try:
        other = engine.start("gated")
        assert engine.cancel(other)
        engine.signal("anything", run=run)
        Reservation.objects.create(status="confirmed")
    finally:
        connection.close()
    gate.opened.set()
    worker.join()
    assert effects() == ["first", "second"]


@pytest.mark.parametrize("atomic", [pytest.param(True, marks=needs_row_locks), False], ids=["atomic", "not atomic"])
def test_21_a_cancellation_does_not_wait_for_the_step(slow, gate, atomic):
    run, worker = slow(atomic)
    began = time.monotonic()
    assert engine.cancel(run, "An operator says so.")
    assert time.monotonic() - began < 10  # the step blocks at the gate until the test opens it below
    assert worker.is_running
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert (run.status, run.error, run.data["tries"]) == ("cancelled", "An operator says so.", 0)
    # Writes inside the step's transaction are rolled back, writes outside stay, and its progress is not stored.
    assert effects() == ([] if atomic else ["second"])
    assert not run.steps.filter(outcome="complete").exists()


@only_on("sqlite", reason="this server locks rows, not the database")
def test_21_sqlite_a_cancellation_waits_for_an_atomic_step(slow, gate):
    """On SQLite an atomic step holds the write lock: a cancellation fails when its busy timeout ends."""
    run, worker = slow(True)
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(OperationalError, match="locked"):
        engine.cancel(run)
    gate.opened.set()
    worker.join()
    connection.close()
    run.refresh_from_db()
    assert run.status == "completed"


@pytest.mark.parametrize("atomic", [pytest.param(True, marks=needs_row_locks), False], ids=["atomic", "not atomic"])
def test_21_the_admin_cancels_at_once(slow, gate, atomic):
    run, worker = slow(atomic)
    browser = Client()
    browser.force_login(get_user_model().objects.create_superuser("operator", password="x"))
    answer = browser.post(
        reverse("admin:automation_workflows_workflowrun_changelist"), {"action": "cancel", "_selected_action": [run.pk]}
    )
    assert answer.status_code == 302
    assert worker.is_running
    run.refresh_from_db()
    assert run.status == "cancelled"
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert run.status == "cancelled"


@pytest.mark.parametrize("atomic", [pytest.param(True, marks=needs_row_locks), False], ids=["atomic", "not atomic"])
def test_21_an_agent_ends_at_once_while_its_handler_works(gate, atomic):
    @agent("slow")
    class Slow:
        class Context(BaseModel):
            pass

        @handler("reservation_confirmed", match={}, atomic=atomic)
        def hear(self, ctx):
            gate.pass_through()
            leave("late")

    AgentManager.spawn("slow")
    drain()
    Reservation.objects.create(status="confirmed")
    worker = OtherThread(drain)
    gate.wait_until_reached()
    run = AgentRun.objects.get()
    assert AgentManager.cancel(run)
    assert worker.is_running
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert effects() == ([] if atomic else ["late"])


@needs_row_locks
@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_21_a_slow_callback_holds_nobody_up(gate, atomic):
    """While a slow callback runs, the entity of its event can be saved."""

    @on_event("reservation_confirmed", name="slow", atomic=atomic)
    def slow(event):
        gate.pass_through()
        leave(event.entity.note)

    stay = Reservation.objects.create(status="confirmed", note="before")
    worker = OtherThread(drain)
    gate.wait_until_reached()
    stay.note = "meanwhile"
    stay.save()
    assert worker.is_running
    gate.opened.set()
    worker.join()
    assert effects() == ["meanwhile"]  # the callback loaded the entity after that save


@needs_row_locks
@pytest.mark.parametrize("what", ["condition", "payload"])
def test_21_conditions_and_payloads_hold_no_lock(gate, what, monkeypatch, clock):
    """While a slow condition or payload runs, its session has no transaction, and the entity can be updated."""
    from tests.support.rows import definition_of

    definition = definition_of(Reservation, "checkin_due")
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=1))

    def slow(entity):
        if not gate.reached.is_set():
            gate.pass_through()
        return True if what == "condition" else {}

    monkeypatch.setattr(definition, what, slow)
    clock.tick(timedelta(hours=1))
    worker = OtherThread(drain)
    gate.wait_until_reached()
    assert transactions_of(gate.session) == 0
    Reservation.objects.filter(pk=stay.pk).update(note="meanwhile")
    gate.opened.set()
    worker.join()
