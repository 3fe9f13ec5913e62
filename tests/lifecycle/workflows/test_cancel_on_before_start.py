"""``cancel_on=`` of runs that have not started: they wait for a slot of a limit, are paused, or are planned anew."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from django_ai.automation import Concurrency, Throttle, complete, engine, event_workflow, goto, step, wait, workflow
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Slot, SlotState
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import Wait, WorkflowRun
from django_ai.automation.workflows.runner import perform_run
from tests.apps.reservations.models import Reservation
from tests.support.cancelled_runs import DOCS, SAVED, OfEntity, OfOrder, cancelled_by_docs, notify_again, patient
from tests.support.matching_runs import Order, save
from tests.support.race import elsewhere
from tests.support.rows import change, effects, event_of, leave, status, the_run

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOON = "2030-01-07T12:00+01:00"


def held() -> int:
    return Slot.objects.exclude(state=SlotState.RELEASED).count()


def test_a_run_that_waits_for_its_turn_is_cancelled_at_once_and_leaves_no_hole():
    patient("throttled", SAVED, throttle=Throttle(1, per=HOUR))
    with time_machine(NOON) as machine:
        orders = [Order.objects.create() for _ in range(3)]
        runs = [engine.start("throttled", order=order.pk) for order in orders]
        machine.process()
        assert [status(run) for run in runs] == ["suspended", "waiting", "waiting"]
        save(orders[1])
        assert status(runs[1]) == "cancelled"
        assert runs[1].started_at is None
        machine.advance(hours=1)
        assert [status(run) for run in runs] == ["suspended", "cancelled", "suspended"]
        assert effects() == ["begin", "begin"]


def test_a_run_that_is_cancelled_when_it_is_admitted_keeps_no_slot(clock, work, monkeypatch):
    """Its event was committed, and the process died before it notified the run."""
    patient("throttled", SAVED, throttle=Throttle(1, per=HOUR))
    orders = [Order.objects.create() for _ in range(3)]
    runs = [engine.start("throttled", order=order.pk) for order in orders]
    work()
    with monkeypatch.context() as patch:
        patch.setattr("django_ai.automation.workflows.subscriber.wake_waiting_for", lambda *args: None)
        save(orders[1])
    work(clock.tick(HOUR))
    assert [status(run) for run in runs] == ["suspended", "cancelled", "waiting"]
    work(clock.tick(HOUR))
    assert [status(run) for run in runs] == ["suspended", "cancelled", "suspended"]
    assert effects() == ["begin", "begin"]
    assert held() == 0


def test_the_slot_of_a_run_that_is_cancelled_instead_of_starting_is_free_at_once(work, monkeypatch):
    """The first run is executed while the others ask for their turn; the event of the second is not notified."""

    @workflow("alone", cancel_on=[SAVED], concurrency=Concurrency(1))
    class Alone:
        Context = OfOrder

        @step(start=True, atomic=False)
        def begin(self):
            if self.context.order == orders[0].pk:
                elsewhere(drain)
                with monkeypatch.context() as patch:
                    patch.setattr("django_ai.automation.workflows.subscriber.wake_waiting_for", lambda *args: None)
                    save(orders[1])
            leave(f"begin {self.context.order}")
            return complete()

    orders = [Order.objects.create() for _ in range(3)]
    runs = [engine.start("alone", order=orders[0].pk)]
    (leased,) = claim(WorkflowRun, timezone.now(), 1)
    runs += [engine.start("alone", order=order.pk) for order in orders[1:]]
    perform_run(leased, timezone.now)
    work()
    assert [status(run) for run in runs] == ["completed", "cancelled", "completed"]
    assert effects() == [f"begin {orders[0].pk}", f"begin {orders[2].pk}"]


def test_a_step_that_causes_the_event_leaves_its_slot_at_once(work):
    @workflow("saves", cancel_on=[SAVED], concurrency=Concurrency(1))
    class Saves:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            leave("begin")
            save(Order.objects.get(pk=self.context.order))
            return goto(self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

    runs = [engine.start("saves", order=Order.objects.create().pk) for _ in range(2)]
    work()
    assert [status(run) for run in runs] == ["cancelled", "cancelled"]
    assert effects() == ["begin", "begin"]
    assert held() == 0


def throttled_plan(per: timedelta = DAY) -> None:
    @event_workflow("checkin_due", name="planned", offset=-HOUR, cancel_on=[DOCS], throttle=Throttle(1, per=per))
    class Planned:
        Context = OfEntity

        @classmethod
        def create_context(cls, event):
            leave(f"context {event.entity.note}")
            return cls.Context(entity_id=event.entity.pk)

        @step(start=True)
        def begin(self):
            leave("begin")
            return wait("never")


def test_a_planned_run_that_is_moved_registers_again_at_its_date(clock, work):
    throttled_plan()
    start = clock.now
    stays = [Reservation.objects.create(status="confirmed", checkin_at=start + DAY, note="old") for _ in range(2)]
    work(clock.tick(DAY - HOUR))
    first, second = WorkflowRun.objects.order_by("pk")
    assert [status(run) for run in (first, second)] == ["suspended", "waiting"]
    assert (second.started_at, Wait.objects.filter(run=second).count()) == (None, 1)
    change(stays[1], checkin_at=start + 9 * DAY, note="new")
    assert (status(second), second.data, Wait.objects.filter(run=second).count()) == ("waiting", {}, 0)
    work(clock.tick(9 * DAY))
    assert status(second) == "suspended"
    assert effects() == ["context old", "begin", "context old", "context new", "begin"]
    change(stays[1], docs=True)
    assert (status(second), status(first)) == ("cancelled", "suspended")


def test_what_occurs_before_a_planned_run_is_moved_counts_too(clock, work):
    throttled_plan()
    start = clock.now
    stays = [Reservation.objects.create(status="confirmed", checkin_at=start + DAY) for _ in range(2)]
    work(clock.tick(DAY - HOUR))
    run = WorkflowRun.objects.latest("pk")
    Wait.objects.filter(run=run).delete()  # as if the event had occurred before
    change(stays[1], docs=True)
    change(stays[1], checkin_at=start + 9 * DAY)
    work(clock.tick(9 * DAY))
    assert (status(run), run.started_at) == ("cancelled", None)


def test_a_registered_run_that_is_withdrawn_and_planned_again_counts_from_then(clock, work):
    throttled_plan()
    start = clock.now
    stays = [Reservation.objects.create(status="confirmed", checkin_at=start + DAY) for _ in range(2)]
    work(clock.tick(DAY - HOUR))
    run = WorkflowRun.objects.latest("pk")
    change(stays[1], status="cancelled")
    assert status(run) == "withdrawn"
    change(stays[1], docs=True)
    assert status(run) == "withdrawn"
    change(stays[1], status="confirmed", checkin_at=start + 9 * DAY)
    assert (status(run), Wait.objects.filter(run=run).count()) == ("waiting", 0)
    work(clock.tick(9 * DAY))
    assert status(run) == "suspended"
    notify_again([event_of(stays[1], "guest_docs_uploaded")])
    assert status(run) == "suspended"


def test_a_date_that_a_query_has_moved_lets_the_run_register_again(clock, work):
    throttled_plan(per=MINUTE)
    start = clock.now
    for _ in range(2):
        stay = Reservation.objects.create(status="confirmed", checkin_at=start + DAY, note="old")
    work(clock.tick(DAY - HOUR))
    run = WorkflowRun.objects.latest("pk")
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=start + 9 * DAY, note="new")
    work(clock.tick(MINUTE))  # before the event itself is due
    assert (status(run), run.data, Wait.objects.filter(run=run).count()) == ("waiting", {}, 0)
    work(clock.tick(9 * DAY))
    assert status(run) == "suspended"
    assert effects()[-2:] == ["context new", "begin"]


def test_a_paused_run_is_cancelled(work):
    patient("paused", SAVED)
    orders = [Order.objects.create() for _ in range(2)]
    runs = [engine.start("paused", order=order.pk) for order in orders]
    work()
    for run in runs:
        engine.pause(run)
    save(orders[0])
    work()
    assert [status(run) for run in runs] == ["cancelled", "suspended"]


@pytest.mark.parametrize("moved", [True, False])
def test_a_worker_that_dies_after_the_registration_leaves_a_run_that_has_not_started(clock, work, monkeypatch, moved):
    cancelled_by_docs(offset=-HOUR)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)

    def dies(*args: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("django_ai.automation.workflows.cancellation._cancel", dies)
        work(clock.tick(DAY - HOUR))
    run = the_run()
    assert (run.status, run.started_at, run.data) == ("waiting", None, {"entity_id": stay.pk})
    if moved:
        change(stay, checkin_at=clock.now + 9 * DAY)
        assert (status(run), run.data, Wait.objects.count()) == ("waiting", {}, 0)
    change(stay, docs=True)
    work(clock.tick(9 * DAY))
    assert (status(run), run.started_at) == ("cancelled", None)
    assert effects() == []
