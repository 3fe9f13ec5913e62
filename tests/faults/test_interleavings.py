"""Bugs found in an adversarial review: failing hooks and commits, steps that change their own rows, concurrent saves.

Each test enforces one order of operations that once lost work, repeated it, or waited forever.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import transaction
from django.test import TestCase
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    complete,
    engine,
    event_workflow,
    get_context,
    get_run,
    get_wake,
    goto,
    on_fail,
    run_subflow,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.events.matching import lookback
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording import reconcile
from django_ai.automation.queues import held_leases
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import InlineNotifier, set_notifier
from django_ai.automation.workflows.models import Signal, WorkflowRun, WorkflowStatus
from tests.apps.reservations.models import Document, Effect, Reservation, Ticket
from tests.support.fault_injection import database_failure

pytestmark = pytest.mark.django_db(transaction=True)


class Nothing(BaseModel):
    pass


def the_run(name: str) -> WorkflowRun:
    return WorkflowRun.objects.get(name=name)


def test_a_hook_that_raises_after_the_commit_does_not_repeat_the_step():
    @workflow("hooked")
    class Hooked:
        Context = Nothing

        @step(start=True)
        def write(self):
            Effect.objects.create(name="once")
            transaction.on_commit(lambda: 1 / 0)
            return goto(self.end)

        @step()
        def end(self):
            return complete()

    run = engine.start("hooked")
    for seconds in range(0, 60, 11):
        drain(timezone.now() + timedelta(seconds=seconds))
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED
    assert Effect.objects.count() == 1
    assert [each.outcome for each in run.steps.all()] == ["goto", "complete"]


def test_what_fails_at_the_commit_is_a_failed_try():
    """A foreign key violation at COMMIT (PostgreSQL, SQLite) is a failed attempt of the step."""

    @workflow("deferred")
    class Deferred:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, retry=Retry(max_attempts=2))
        def write(self):
            self.context.tries += 1
            Document(reservation_id=99_999).save()
            return complete()

    run = engine.start("deferred")
    drain()
    run.refresh_from_db()
    assert (run.status, run.attempt, run.data) == (WorkflowStatus.WAITING, 1, {"tries": 1})
    drain(run.wake_at)
    run.refresh_from_db()
    assert run.status == WorkflowStatus.FAILED
    assert "IntegrityError" in run.error
    assert [each.outcome for each in run.steps.all()] == ["error", "error"]


def plan(first) -> Reservation:
    @event_workflow("checkin_due", offset=timedelta(hours=-1), name="planned")
    class Planned:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def begin(self):
            first(Reservation.objects.get(pk=self.context.entity_id))
            return complete()

    return Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + timedelta(hours=3))


@pytest.mark.parametrize("change", ["condition", "date", "delete"])
def test_a_planned_run_may_change_its_own_event(change):
    def first(stay: Reservation) -> None:
        Effect.objects.create(name="began")
        if change == "delete":
            stay.delete()
            return
        if change == "condition":
            stay.status = "preparing"
        else:
            stay.checkin_at += timedelta(days=1)
        stay.save()

    plan(first)
    drain(timezone.now() + timedelta(hours=2, seconds=1))
    assert the_run("planned").status == WorkflowStatus.COMPLETED
    assert Effect.objects.count() == 1


def test_a_planned_run_that_begins_while_it_is_withdrawn_is_kept(monkeypatch):
    """The worker commits the start of the run between the check and the delete."""
    from django_ai.automation.workflows import ending

    stay = plan(lambda found: Effect.objects.create(name="began"))
    original = ending.revoke

    def begin_first(rows, **changes):
        monkeypatch.setattr(ending, "revoke", original)
        WorkflowRun.objects.filter(name="planned").update(started_at=timezone.now(), status="running")
        return original(rows, **changes)

    monkeypatch.setattr(ending, "revoke", begin_first)
    stay.status = "cancelled"
    stay.save()
    assert WorkflowRun.objects.filter(name="planned").exists()


def test_reconciliation_does_not_write_over_a_save(monkeypatch):
    """A save between the reconciliation's read and its write is not overwritten."""
    ticket = Ticket.objects.create(due_at=timezone.now() + timedelta(minutes=5))
    # update() sends no signal: the date differs from the event's row, so the reconciliation reads the ticket.
    Ticket.objects.filter(pk=ticket.pk).update(due_at=timezone.now() + timedelta(minutes=6))
    original = reconcile.record

    def save_first(entities, now, **options):
        monkeypatch.setattr(reconcile, "record", original)
        with transaction.atomic():
            fresh = Ticket.objects.get(pk=ticket.pk)
            fresh.open, fresh.due_at = False, timezone.now() + timedelta(days=9)
            fresh.save()
            return original(entities, now, **options)

    monkeypatch.setattr(reconcile, "record", save_first)
    reconcile.reconcile_dates(timezone.now())
    closed, due = Event.objects.of(ticket).order_by("event_name")
    assert (closed.event_name, closed.status) == ("ticket_closed", "processed")
    assert (due.armed, due.at > timezone.now() + timedelta(days=8)) == (False, True)


def test_a_beat_does_not_wake_a_row_that_was_just_let_go(monkeypatch):
    engine.start("story:count", steps=1)
    (row,) = claim(WorkflowRun, timezone.now(), 1)
    leases = held_leases.HeldLeases()
    leases.hold([row])
    leases.start(row)
    leases.keep_for(timedelta(minutes=1))
    original = held_leases.renew

    def finish_first(rows, lease, now):
        row.perform(timezone.now)  # the worker finishes between the heartbeat's read and its write
        original(rows, lease, now)

    monkeypatch.setattr(held_leases, "renew", finish_first)
    leases.renew()
    row.refresh_from_db()
    assert (row.status, row.wake_at, row.lease) == (WorkflowStatus.COMPLETED, None, None)


def test_a_finished_run_that_is_due_by_mistake_does_nothing():
    run = engine.start("story:count", steps=1)
    drain()
    WorkflowRun.objects.filter(pk=run.pk).update(wake_at=timezone.now())
    drain()
    run.refresh_from_db()
    assert (run.status, run.wake_at) == (WorkflowStatus.COMPLETED, None)
    assert run.steps.count() == 1


class TestWaits:
    def listen(self, name: str = "waiter", **arguments) -> WorkflowRun:
        @workflow(name)
        class Waiter:
            class Context(BaseModel):
                rid: str = ""

            @step(start=True)
            def begin(self):
                if get_wake().reason == "event":
                    return complete()
                return wait_for_event("document_uploaded", match={"reservation_id": "{{ ctx.rid }}"})

        return engine.start(name, **arguments)

    def test_a_match_that_no_entity_can_have_waits_in_peace(self):
        run = self.listen(rid="not a number")
        drain()
        run.refresh_from_db()
        assert (run.status, run.wake_at, run.losses) == (WorkflowStatus.SUSPENDED, None, 0)

    def test_an_event_is_found_among_many_matching_entities(self, monkeypatch):
        stay = Reservation.objects.create()
        monkeypatch.setattr(lookback, "ROWS_PER_QUERY", 3)
        run = self.listen(rid=str(stay.pk))
        WorkflowRun.objects.filter(pk=run.pk).update(started_at=timezone.now() - timedelta(minutes=1))
        Document.objects.create(reservation=stay)  # occurs before the run waits
        Document.objects.bulk_create(Document(reservation=stay) for _ in range(6))
        drain()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.COMPLETED

    def test_a_broadcast_between_two_tries_is_not_lost(self):
        @workflow("second try")
        class SecondTry:
            class Context(BaseModel):
                tries: int = 0

            @step(start=True)
            def begin(self):
                if get_wake().reason == "signal":
                    return complete()
                self.context.tries += 1
                if self.context.tries == 1:
                    raise RuntimeError("first")
                return wait("go")

        run = engine.start("second try")
        drain()
        engine.signal("go")
        drain()
        drain(timezone.now() + timedelta(seconds=5))
        drain(timezone.now() + timedelta(seconds=6))
        run.refresh_from_db()
        assert run.status == WorkflowStatus.COMPLETED

    def test_the_entity_is_deleted_while_the_step_that_will_wait_runs(self):
        @event_workflow("reservation_confirmed", name="in vain")
        class InVain:
            class Context(BaseModel):
                entity_id: int

            @step(start=True, atomic=False)
            def begin(self):
                Reservation.objects.get(pk=self.context.entity_id).delete()
                return wait_for_event("guest_docs_uploaded")

        Reservation.objects.create(status="confirmed")
        drain()
        run = the_run("in vain")
        assert run.status == WorkflowStatus.CANCELLED
        assert "deleted" in run.error

    def test_a_parked_signal_wakes_nobody(self):
        signal = engine.signal("parked")
        Signal.objects.filter(pk=signal.pk).update(wake_at=None, error="set aside")

        @workflow("later")
        class Later:
            Context = Nothing

            @step(start=True)
            def begin(self):
                return wait("parked")

        run = engine.start("later")
        drain()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.SUSPENDED

    def test_what_started_a_run_is_not_what_it_waits_for(self):
        @event_workflow("document_uploaded", name="next one")
        class NextOne:
            Context = Nothing

            @step(start=True)
            def begin(self):
                if get_wake().reason == "event":
                    return complete()
                return wait_for_event("document_uploaded", match={})

        Document.objects.create(reservation=Reservation.objects.create())
        drain()
        assert the_run("next one").status == WorkflowStatus.SUSPENDED


class TestCaptured(TestCase):
    """A project's own ``TestCase``: nothing commits, and hooks run only when the test asks for it."""

    def setUp(self):
        Reservation.objects.create(status="confirmed")

    def test_capture_runs_what_the_block_saved(self):
        with self.captureOnCommitCallbacks(execute=True):
            Reservation.objects.create(status="confirmed")
        assert Event.objects.filter(event_name="reservation_confirmed", status="processed").count() == 2


def test_a_date_that_means_never_can_be_saved():
    stay = Reservation.objects.create(status="confirmed", checkin_at=datetime(9999, 12, 31, 23, 59, tzinfo=UTC))
    assert Event.objects.of(stay).get(event_name="checkin_due").status == "pending"
    stay.note = "x"
    stay.save()
    drain()


def test_on_fail_runs_as_a_step_of_its_run():
    seen = []

    @workflow("ends badly")
    class EndsBadly:
        class Context(BaseModel):
            word: str = "hello"

        @step(start=True, retry=Retry(max_attempts=1))
        def begin(self):
            raise RuntimeError("broken")

        @on_fail
        def mourn(self, error):
            seen.append((self.context.word, get_context().word, get_run().name, "broken" in error))
            Reservation.objects.create(status="confirmed")

    engine.start("ends badly")
    drain()
    assert seen == [("hello", "hello", "ends badly", True)]
    event = Event.objects.get(event_name="reservation_confirmed")
    assert event.depth == 1
    assert event.caused_by.startswith("workflow:")


def test_an_event_that_has_occurred_is_not_parked_by_a_later_save(monkeypatch):
    stay = Reservation.objects.create(status="confirmed")
    definition = Event.objects.get(event_name="reservation_confirmed").definition
    monkeypatch.setattr(definition, "condition", lambda entity: 1 / 0)
    stay.note = "x"
    stay.save()
    assert Event.objects.get(event_name="reservation_confirmed").status == "processed"


def test_the_end_of_a_child_is_reported_and_not_merged():
    @workflow("child")
    class Child:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return complete()

    @workflow("parent")
    class Parent:
        class Context(BaseModel):
            status: int = 7

        @step(start=True)
        def begin(self):
            return run_subflow("child", then=self.end)

        @step()
        def end(self):
            Effect.objects.create(name=get_wake().payload["status"])
            return complete()

    run = engine.start("parent")
    drain()
    run.refresh_from_db()
    assert (run.status, run.data) == (WorkflowStatus.COMPLETED, {"status": 7})
    assert Effect.objects.get().name == "completed"


def test_a_planned_run_that_is_due_at_once_rings():
    set_notifier(InlineNotifier())
    try:

        @event_workflow("checkin_due", offset=timedelta(hours=-1), name="late booking")
        class LateBooking:
            class Context(BaseModel):
                entity_id: int

            @step(start=True)
            def begin(self):
                return complete()

        Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + timedelta(minutes=10))
        assert the_run("late booking").status == WorkflowStatus.COMPLETED
    finally:
        set_notifier(None)


def test_a_database_failure_in_a_condition_parks_nothing(monkeypatch):
    stay = Reservation.objects.create(checkin_at=timezone.now() + timedelta(minutes=1))
    event = Event.objects.of(stay).get(event_name="checkin_due")

    def in_the_way(entity):
        raise database_failure()

    monkeypatch.setattr(event.definition, "condition", in_the_way)
    moment = timezone.now() + timedelta(minutes=2)
    drain(moment)
    event.refresh_from_db()
    assert event.status == "pending"
    monkeypatch.undo()
    drain(moment + timedelta(seconds=11))
    event.refresh_from_db()
    assert (event.status, event.losses) == ("pending", 0)
