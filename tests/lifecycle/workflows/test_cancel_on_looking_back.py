"""``cancel_on=``: what has occurred before a run registers, what is resumed, and workers that die."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import FreeEvent, On, Retry, emit, engine, event_workflow, fail, step, wait, workflow
from django_ai.automation.events.models import Event
from django_ai.automation.events.retention import prune_events
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.workflows import cancellation
from django_ai.automation.workflows.models import Wait, WorkflowRun
from django_ai.automation.workflows.run_session import RunSession
from tests.apps.reservations.models import Reservation
from tests.support.cancelled_runs import (
    DOCS,
    SAVED,
    OfEntity,
    OfOrder,
    cancelled_by_docs,
    declare_watched,
    notify_again,
    order_of,
    patient,
)
from tests.support.matching_runs import Order, save
from tests.support.rows import change, effects, event_of, status, the_run

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def watched() -> type:
    return declare_watched()


def test_what_occurs_before_a_worker_has_reached_the_run_keeps_it_from_starting(watched, work):
    order, run = order_of()
    save(order)
    work()
    assert (status(run), effects()) == ("cancelled", [])


def test_what_occurred_before_the_run_was_started_does_not_count(watched, work):
    order = Order.objects.create()
    save(order)
    run = engine.start("watched", order=order.pk, do="signal")
    work()
    assert status(run) == "suspended"


def test_an_event_whose_notification_comes_late_does_not_cancel_a_newer_run(watched, work):
    order = Order.objects.create()
    save(order)
    run = engine.start("watched", order=order.pk, do="signal")
    work()
    notify_again([event_of(order, "order_saved")])  # its process had died before it notified
    assert status(run) == "suspended"


def test_a_run_says_what_it_waits_for_without_what_cancels_it(watched, clock, work):
    _, run = order_of()
    work()
    run.refresh_from_db()
    assert run.waits_for(clock.now) == "the signal 'go'"
    assert Event.objects.filter(event_name="order_saved").count() == 0


# -- resumed runs, deaths, deployments ---------------------------------------------------------------------------------


def test_a_failed_run_that_is_resumed_is_cancelled_by_what_has_occurred_meanwhile(work):
    answers = ["fail", "wait"]

    @workflow("twice", cancel_on=[SAVED])
    class Twice:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            return fail("no") if answers.pop(0) == "fail" else wait("never")

    first, second = Order.objects.create(), Order.objects.create()
    run, other = engine.start("twice", order=first.pk), engine.start("twice", order=second.pk)
    work()
    answers.append("wait")
    WorkflowRun.objects.filter(pk=other.pk, status="suspended").update(status="failed")
    assert (status(run), status(other)) == ("failed", "failed")
    save(first)
    for each in (run, other):
        engine.resume(each)
    work()
    assert (status(run), status(other)) == ("cancelled", "suspended")
    save(second)
    assert status(other) == "cancelled"


def test_a_run_that_started_without_it_is_watched_from_its_next_step_on(watched, clock, work):
    """As after a deployment that adds ``cancel_on``."""
    order, run = order_of("sleep")
    work()
    Wait.objects.all().delete()
    save(order)
    assert status(run) == "waiting"
    work(clock.now + DAY)
    assert (status(run), effects()) == ("cancelled", ["begin"])


def test_a_failed_run_that_goes_on_waiting_is_cancelled_by_what_has_occurred_meanwhile(clock, work):
    patient("limited", SAVED, deadline=HOUR)
    orders = [Order.objects.create() for _ in range(2)]
    runs = [engine.start("limited", order=each.pk) for each in orders]
    work()
    clock.tick(HOUR)
    work()
    assert [status(run) for run in runs] == ["failed", "failed"]
    save(orders[0])
    for run in runs:
        engine.resume(run)
    work()
    assert [status(run) for run in runs] == ["cancelled", "suspended"]
    save(orders[1])
    assert status(runs[1]) == "cancelled"


def test_a_run_that_is_resumed_at_another_step_is_cancelled_as_before(work):
    @workflow("two", cancel_on=[SAVED])
    class Two:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            return fail("no")

        @step()
        def second(self):
            return wait("never")

    order = Order.objects.create()
    run = engine.start("two", order=order.pk)
    work()
    engine.resume(run, "second")
    work()
    assert status(run) == "suspended"
    save(order)
    assert status(run) == "cancelled"


class DiedError(SystemExit):
    pass


@pytest.mark.parametrize(("part", "registered"), [("_new_rows", False), ("_cancel", True)])
def test_a_worker_that_dies_before_it_has_looked_loses_nothing(watched, clock, work, monkeypatch, part, registered):
    """The event has occurred before the rows are committed, so its own lookup does not find them."""
    order, run = order_of()
    save(order)

    def dies(*args: Any) -> Any:
        raise DiedError

    with monkeypatch.context() as patch, pytest.raises(DiedError):
        patch.setattr(cancellation, part, dies)
        work()
    assert Wait.objects.filter(run=run.pk).exists() is registered
    clock.tick(HOUR)
    work()
    assert (status(run), effects()) == ("cancelled", [])


def test_a_worker_that_has_lost_its_lease_registers_nothing(watched, work, monkeypatch):
    _, run = order_of()
    begin = RunSession.begin

    def cancelled_meanwhile(session: RunSession, entry: Any) -> None:
        engine.cancel(run.pk)
        begin(session, entry)

    monkeypatch.setattr(RunSession, "begin", cancelled_meanwhile)
    work()
    assert (status(run), Wait.objects.count(), effects()) == ("cancelled", 0, [])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_event_between_the_registration_and_the_look_cancels_once(watched, work, monkeypatch, moment):
    order, run = order_of()
    cancel = cancellation._cancel

    def racing(*args: Any) -> bool:
        if moment == "before":
            save(order)
        found = cancel(*args)
        if moment == "after":
            save(order)
        return found

    monkeypatch.setattr(cancellation, "_cancel", racing)
    work()
    run.refresh_from_db()
    assert (run.status, effects(), Wait.objects.count()) == ("cancelled", [] if moment == "before" else effects(), 0)
    assert run.error.startswith(f"Cancelled by event 'order_saved' of app.order {order.pk}")


def test_evaluations_of_when_use_up_no_attempt_although_a_worker_dies_after_the_registration(clock, work, monkeypatch):
    answers = [ZeroDivisionError, ZeroDivisionError]

    def when(event: Event) -> bool:
        if answers:
            raise answers.pop()
        return True

    @event_workflow("reservation_confirmed", name="fails", when=when, cancel_on=[DOCS])
    class Fails:
        Context = OfEntity

        @step(start=True, retry=Retry(max_attempts=3))
        def begin(self):
            raise ValueError("no")

    def dies(*args: Any) -> Any:
        raise DiedError

    Reservation.objects.create(status="confirmed")
    for _ in range(2):
        work()
        clock.tick(MINUTE)
    with monkeypatch.context() as patch, pytest.raises(DiedError):
        patch.setattr(cancellation, "_cancel", dies)
        work()
    for _ in range(5):
        clock.tick(HOUR)
        work()
    run = the_run()
    assert (run.status, run.attempt, run.steps.filter(outcome="error").count()) == ("failed", 3, 3)


# -- planned runs ------------------------------------------------------------------------------------------------------


def test_what_occurred_before_a_run_was_planned_does_not_count(clock, work):
    cancelled_by_docs(offset=-HOUR)
    stay = Reservation.objects.create(docs=True)
    work()
    change(stay, status="confirmed", checkin_at=clock.now + DAY)
    work(clock.now + DAY - HOUR)
    assert status(the_run()) == "suspended"


def test_a_run_that_is_planned_again_counts_from_then(clock, work):
    cancelled_by_docs(offset=-HOUR)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    change(stay, docs=True)
    change(stay, status="cancelled")
    assert status(the_run()) == "withdrawn"
    change(stay, status="confirmed")
    assert status(the_run()) == "waiting"
    work(clock.now + DAY - HOUR)
    assert status(the_run()) == "suspended"


def test_a_run_that_an_older_release_has_planned_counts_from_its_creation(work):
    """That release knew no ``cancel_on`` and stored no position, so the database's clock decides. In real time."""
    cancelled_by_docs(offset=-HOUR)
    stay = Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + HOUR + 30 * MINUTE)
    WorkflowRun.objects.update(position=0)
    change(stay, docs=True)
    work(timezone.now() + 31 * MINUTE)
    assert (status(the_run()), effects()) == ("cancelled", [])


def test_what_cancels_a_planned_run_is_not_pruned(clock, work):
    class Recalled(BaseModel):
        stay: int

    FreeEvent("recalled", payload=Recalled)

    @event_workflow(
        "checkin_due", name="planned", offset=-HOUR, cancel_on=[On("recalled", match={"stay": "{{ ctx.entity_id }}"})]
    )
    class Planned:
        Context = OfEntity

        @step(start=True)
        def begin(self):
            return wait("never")

    emit("recalled", {"stay": 0})
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 3000 * DAY)
    emit("recalled", {"stay": stay.pk})
    work()
    clock.tick(2000 * DAY)
    prune_events(TimeSlice(clock()))
    assert Event.objects.filter(event_name="recalled").count() == 1
    work(clock.tick(1000 * DAY))
    assert status(the_run()) == "cancelled"
    prune_events(TimeSlice(clock()))
    assert not Event.objects.filter(event_name="recalled").exists()
