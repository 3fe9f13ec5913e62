"""Events that cancel runs while workers start them, perform them, and wait for them: no run misses its event."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation import On, engine, run_subflow, step, wait_all, workflow
from django_ai.automation.events.models import EventClaim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.registry import due_times
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.cancelled_runs import WAYS, OfOrder, declare_watched, patient
from tests.support.matching_runs import Order, save
from tests.support.race import together_with_workers

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.timeout(300)]


def finish(clock) -> None:
    """Perform everything that is due, also what is due again a second after a deadlock."""
    drain()
    while (times := due_times()) and min(times.values()) < clock() + timedelta(minutes=1):
        clock.now = max(clock.now, min(times.values()))
        drain()


@pytest.mark.parametrize("reached", [False, True], ids=["before a worker has reached them", "while they wait"])
def test_no_run_misses_the_event_that_cancels_it(clock, reached):
    declare_watched()
    for _ in range(5):
        orders = [Order.objects.create() for _ in range(2)]
        runs = [engine.start("watched", order=order.pk, do=way) for order in orders for way in [*WAYS, "signal"]]
        if reached:
            drain()
        raised = together_with_workers(
            *[lambda order=order: save(order) for order in orders], lambda: engine.signal("go"), workers=2
        )
        assert raised == []
        finish(clock)
        found = WorkflowRun.objects.filter(pk__in=[run.pk for run in runs])
        going = {(run.data["do"], run.status) for run in found if not run.is_finished}
        assert going == set()
        # The signal lets a run enter its last step, which may commit before the event has occurred.
        completed = [run for run in found if run.status == "completed"]
        assert all(run.data["do"] == "signal" for run in completed)
        assert all("'order_saved'" in run.error for run in found if run not in completed)
    assert not WorkflowRun.objects.unfinished().exists()
    assert (Wait.objects.count(), EventClaim.objects.count()) == (0, 0)


def test_two_events_cancel_parents_and_their_children_at_once(clock):
    papers = On("document_uploaded", match={})
    patient("child of two", papers)

    @workflow("parent of two", cancel_on=[On("order_saved", match={})])
    class Parent:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            children = {f"child {number}": run_subflow("child of two", order=number) for number in range(2)}
            return wait_all(children, then=self.begin)

    for _ in range(5):
        for number in range(4):
            engine.start("parent of two", order=number)
            engine.start("child of two", order=number)
        drain()
        order, stay = Order.objects.create(), Reservation.objects.create()
        raised = together_with_workers(
            lambda order=order: save(order), lambda stay=stay: Document.objects.create(reservation=stay), workers=2
        )
        assert raised == []
        finish(clock)
        # Children that ended first may have let their parent start others, which the next events end.
        left = WorkflowRun.objects.unfinished()
        assert set(left.values_list("name", flat=True)) <= {"parent of two", "child of two"}
        save(order)
        Document.objects.create(reservation=stay)
        finish(clock)
        save(order)
        finish(clock)
        assert not WorkflowRun.objects.unfinished().exists()
        assert Wait.objects.count() == 0
