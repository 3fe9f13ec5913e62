"""``cancel_on=``: events that cancel a run, whatever it does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    Debounce,
    On,
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    goto,
    run_subflow,
    step,
    wait,
    workflow,
)
from django_ai.automation.events.models import Event, EventClaim
from django_ai.automation.queues import causation
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.signals import attempt_finished
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.cancelled_runs import (
    DOCS,
    SAVED,
    WAYS,
    OfEntity,
    OfOrder,
    cancelled_by_docs,
    declare_watched,
    notify_again,
    order_of,
    patient,
)
from tests.support.matching_runs import Order, save
from tests.support.rows import change, effects, history, leave, status, the_run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def watched() -> type:
    return declare_watched()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.exact_times
def test_an_event_cancels_the_run_whatever_it_waits_for(watched, clock, work, way):
    order, run = order_of(way)
    other = Order.objects.create()
    work()
    before = effects()
    save(other)
    work()
    run.refresh_from_db()
    assert not run.is_finished
    save(order)
    work()
    run.refresh_from_db()
    assert (run.status, run.wake_at, run.lease, run.finished_at) == ("cancelled", None, None, clock.now)
    assert run.error == (
        f"Cancelled by event 'order_saved' of app.order {order.pk}, which its workflow names in cancel_on=."
    )
    assert not Wait.objects.exists()
    assert not EventClaim.objects.exists()
    assert not WorkflowRun.objects.unfinished().exists()
    clock.tick(2 * DAY)
    assert (work(), effects()) == (0, before)


def test_a_run_that_no_event_cancels_ends_and_leaves_nothing(watched, work):
    order, run = order_of("")
    work()
    assert (status(run), effects(), Wait.objects.count()) == ("completed", ["begin", "end"], 0)
    save(order)
    work()
    assert status(run) == "completed"


def test_it_stays_in_effect_from_wait_to_wait(work):
    @workflow("loops", cancel_on=[SAVED])
    class Loops:
        Context = OfOrder

        @step(start=True)
        def again(self):
            leave("again")
            return wait("go", timeout=MINUTE, on_timeout=self.again, then=self.again)

    order = Order.objects.create()
    run = engine.start("loops", order=order.pk)
    for _ in range(3):
        work()
        engine.signal("go")
    work()
    run.refresh_from_db()
    work(run.wake_at)  # the timeout of the last wait
    assert effects() == ["again"] * 5
    save(order)
    assert status(run) == "cancelled"


def test_a_parked_run_is_cancelled_too(watched, clock, work):
    order, run = order_of("sleep")
    work()
    (row,) = claim(WorkflowRun, clock.now + DAY, 1)
    row.park("three workers died")
    save(order)
    assert status(run) == "cancelled"


def test_the_parent_receives_the_end_of_a_cancelled_child(work):
    @workflow("parent")
    class Parent:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            return run_subflow("watched child", order=self.context.order, then=self.end)

        @step()
        def end(self):
            return fail("The child was cancelled.")

    @workflow("watched child", cancel_on=[SAVED])
    class WatchedChild:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            return wait("never")

    order = Order.objects.create()
    parent = engine.start("parent", order=order.pk)
    work()
    save(order)
    work()
    assert (status(parent), parent.error) == ("failed", "The child was cancelled.")


# -- a step in progress ------------------------------------------------------------------------------------------------


def saving_step(atomic: bool, act: Callable[[Order], object]) -> None:
    @workflow("saves", cancel_on=[SAVED])
    class Saves:
        Context = OfOrder

        @step(start=True, atomic=atomic)
        def begin(self):
            leave("begin")
            act(Order.objects.get(pk=self.context.order))
            return goto(self.end)

        @step()
        def end(self):
            leave("end")
            return complete()


def test_the_commit_of_a_step_in_progress_is_refused(work):
    def elsewhere(order: Order) -> None:
        with causation.running(None):  # another process
            save(order)

    saving_step(False, elsewhere)
    order = Order.objects.create()
    run = engine.start("saves", order=order.pk)
    work()
    assert (status(run), history(run)) == ("cancelled", [])
    assert effects() == ["begin"]  # which was not in a transaction


@pytest.mark.parametrize("atomic", [True, False])
def test_a_step_may_cause_the_event_that_cancels_its_run(work, atomic):
    saving_step(atomic, save)
    order = Order.objects.create()
    run = engine.start("saves", order=order.pk)
    work()
    assert (status(run), effects()) == ("cancelled", ["begin"])
    assert [outcome for _, _, outcome in history(run)] == ["goto"]


@pytest.mark.parametrize("atomic", [True, False])
def test_no_step_is_entered_after_one_that_has_caused_the_event(work, atomic):
    entered = []

    @workflow("saves", cancel_on=[SAVED])
    class Saves:
        Context = OfOrder

        @step(start=True, atomic=atomic)
        def begin(self):
            save(Order.objects.get(pk=self.context.order))
            return goto(self.end)

        @step(atomic=False)
        def end(self):
            entered.append(self)
            return complete()

    run = engine.start("saves", order=Order.objects.create().pk)
    work()
    assert (status(run), entered) == ("cancelled", [])


# -- event workflows ---------------------------------------------------------------------------------------------------


def test_the_run_of_an_event_is_cancelled_before_and_after_its_start(work):
    cancelled_by_docs("reservation_confirmed")
    early = Reservation.objects.create(status="confirmed")
    change(early, docs=True)  # the run is inserted, and no worker has reached it
    work()
    assert (status(the_run()), effects()) == ("cancelled", [])
    later = Reservation.objects.create(status="confirmed")
    work()
    run = the_run(entity_id=later.pk)
    assert (run.status, effects()) == ("suspended", ["begin"])
    change(later, docs=True)
    assert status(run) == "cancelled"


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_a_planned_run_does_not_start_if_the_event_has_occurred_since_it_was_planned(clock, work, offset):
    cancelled_by_docs(offset=offset)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    other = Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.tick(HOUR)
    change(stay, docs=True)
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"waiting"}
    for hours in (22, 1, 1):  # an hour before the date, the date, an hour after it
        clock.tick(hours * HOUR)
        work()
    run = the_run(entity_id=stay.pk)
    assert (run.status, run.started_at) == ("cancelled", None)
    assert run.error.startswith(f"Cancelled by event 'guest_docs_uploaded' of app.reservation {stay.pk}")
    assert (status(the_run(entity_id=other.pk)), effects()) == ("suspended", ["begin"])
    change(other, docs=True)
    assert status(the_run(entity_id=other.pk)) == "cancelled"


def test_the_event_that_started_a_run_does_not_cancel_it_but_its_next_occurrence_does(work):
    @event_workflow("order_saved", name="itself", cancel_on=[On("order_saved", match={"pk": "{{ ctx.entity_id }}"})])
    class Itself:
        Context = OfEntity

        @step(start=True)
        def begin(self):
            return wait("never")

    order = Order.objects.create()
    save(order)
    work()
    first = the_run()
    notify_again(Event.objects.filter(event_name="order_saved"))
    assert status(first) == "suspended"
    save(order)
    work()
    assert [run.status for run in WorkflowRun.objects.order_by("pk")] == ["cancelled", "suspended"]


def test_a_context_that_cannot_be_made_uses_up_the_attempts_of_the_first_step(clock, work):
    tries = []

    @event_workflow("checkin_due", name="fails", cancel_on=[DOCS], default_retry=Retry(max_attempts=3))
    class Fails:
        Context = OfEntity

        @classmethod
        def create_context(cls, event):
            tries.append(event)
            raise ValueError("no")

        @step(start=True)
        def begin(self):
            return complete()

    Reservation.objects.create(status="confirmed", checkin_at=clock.now)
    for _ in range(9):
        work()
        clock.tick(MINUTE)
    run = the_run()
    assert (run.status, run.attempt, len(tries)) == ("failed", 3, 3)
    assert history(run) == [("begin", 1, "error"), ("begin", 2, "error"), ("begin", 3, "error")]


def test_what_create_context_writes_is_kept_once(work):
    @event_workflow("reservation_confirmed", name="writes", cancel_on=[DOCS])
    class Writes:
        Context = OfEntity

        @classmethod
        def create_context(cls, event):
            leave("context")
            return cls.Context(entity_id=event.entity.pk)

        @step(start=True)
        def begin(self):
            leave("begin")
            return complete()

    Reservation.objects.create(status="confirmed")
    work()
    assert (status(the_run()), effects()) == ("completed", ["context", "begin"])


def test_the_events_of_a_window_do_not_cancel_its_run(clock, work):
    @event_workflow(
        "document_uploaded",
        name="collects",
        debounce=Debounce(MINUTE),
        cancel_on=[On("document_uploaded", match={"kind": "visa"}), DOCS],
    )
    class Collects:
        class Context(BaseModel):
            entity_id: int

        @classmethod
        def create_context(cls, events):
            return cls.Context(entity_id=events[0].entity.reservation_id)

        @step(start=True)
        def begin(self):
            leave("begin")
            return wait("never")

    first, second = Reservation.objects.create(), Reservation.objects.create()
    Document.objects.create(reservation=first)
    Document.objects.create(reservation=first, kind="visa")
    clock.tick(MINUTE)
    work()
    collected = the_run()
    assert (collected.status, effects()) == ("suspended", ["begin"])
    notify_again(Event.objects.filter(event_name="document_uploaded"))
    assert status(collected) == "suspended"
    Document.objects.create(reservation=second)
    change(second, docs=True)  # while the window is open
    assert status(collected) == "suspended"
    clock.tick(MINUTE)
    work()
    run = WorkflowRun.objects.latest("pk")
    assert (run.status, effects()) == ("cancelled", ["begin"])
    Document.objects.create(reservation=second, kind="visa")
    assert status(collected) == "cancelled"


def test_a_registration_is_no_attempt_of_the_step(work):
    seen = []

    def finished(sender, row, error, **kwargs):
        seen.append(error)

    attempt_finished.connect(finished)
    try:
        patient("patient", SAVED)
        engine.start("patient", order=1)
        work()
    finally:
        attempt_finished.disconnect(finished)
    assert seen == [None]


def test_the_time_machine_cancels_runs():
    cancelled_by_docs(offset=-HOUR)
    with time_machine("2030-01-07T12:00+01:00", raise_errors=True) as machine:
        stays = [Reservation.objects.create(status="confirmed", checkin_at=machine.now + DAY) for _ in range(2)]
        machine.advance(hours=2)
        change(stays[0], docs=True)
        machine.advance(hours=21)
        assert effects() == ["begin"]
        assert [run.status for run in WorkflowRun.objects.order_by("pk")] == ["cancelled", "suspended"]
