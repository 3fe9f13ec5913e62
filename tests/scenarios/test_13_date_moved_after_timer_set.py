"""13, a date is moved or a condition flips after the timer was set: the timer follows and never fires early. A timer
that no longer applies does not fire, even if a worker has leased it at that moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import AgentManager, agent, complete, event_workflow, handler, on_event, step
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import LeaseLostError
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect, Reservation
from tests.support.rows import leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
HALF_AN_HOUR = timedelta(minutes=30)


class Nothing(BaseModel):
    pass


def an_event() -> timedelta:
    @on_event("checkin_due", name="timer")
    def due(event):
        leave(timezone.now().isoformat())

    return timedelta(0)


def an_offset() -> timedelta:
    @on_event("checkin_due", offset=-HOUR, name="timer")
    def soon(event):
        leave(timezone.now().isoformat())

    return -HOUR


def a_planned_run() -> timedelta:
    @event_workflow("checkin_due", offset=-HOUR, name="timer")
    class Timer:
        Context = Nothing

        @step(start=True)
        def begin(self):
            leave(timezone.now().isoformat())
            return complete()

    return -HOUR


def an_agents_handler() -> timedelta:
    @agent("timer")
    class Timer:
        Context = Nothing

        @handler("checkin_due", offset=-HOUR, match={})
        def soon(self):
            leave(timezone.now().isoformat())

    AgentManager.spawn("timer")
    drain()
    return -HOUR


TIMERS = {"event": an_event, "offset": an_offset, "planned run": a_planned_run, "agent": an_agents_handler}
CHANGES: dict[str, dict[str, object]] = {
    "earlier": {"checkin_at": -2 * HOUR},
    "later": {"checkin_at": 2 * HOUR},
    "never": {"checkin_at": None},
    "flipped": {"status": "cancelled"},
}
each_timer = pytest.mark.parametrize("timer", TIMERS.values(), ids=list(TIMERS))
each_change = pytest.mark.parametrize("change", CHANGES)


def save(stay: Reservation, **values: object) -> None:
    fresh = Reservation.objects.get(pk=stay.pk)
    for name, value in values.items():
        setattr(fresh, name, value)
    fresh.save()


def update(stay: Reservation, **values: object) -> None:
    Reservation.objects.filter(pk=stay.pk).update(**values)


each_way = pytest.mark.parametrize("write", [save, update])


def changed(write: Callable[..., None], stay: Reservation, change: str) -> Reservation:
    values = dict(CHANGES[change])
    if values.get("checkin_at") is not None:
        values["checkin_at"] = stay.checkin_at + values["checkin_at"]
    write(stay, **values)
    stay.refresh_from_db()
    return stay


def until_the_next_day(clock) -> None:
    """Poll and drain every half hour until every timer has passed."""
    end = clock.now + 9 * HOUR
    while clock.now < end:
        poll_due(clock.now)
        drain()
        clock.tick(HALF_AN_HOUR)


def fired() -> list[str]:
    return list(Effect.objects.values_list("name", flat=True))


@each_timer
@each_change
@each_way
def test_13_before_it_is_due(timer, change, write, clock):
    offset = timer()
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 5 * HOUR)
    drain()
    stay = changed(write, stay, change)
    until_the_next_day(clock)
    expected = [] if change in ("never", "flipped") else [(stay.checkin_at + offset).isoformat()]
    assert fired() == expected


@each_timer
@pytest.mark.parametrize("change", ["later", "never", "flipped"])
@each_way
def test_13_when_a_worker_has_leased_it(timer, change, write, clock):
    """A worker has claimed the due row, and then its date is moved or its condition flips: it does not fire."""
    offset = timer()
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 5 * HOUR)
    drain()
    clock.now = stay.checkin_at + offset
    rows = [*claim(Event, clock.now, 20), *claim(WorkflowRun, clock.now, 20), *claim(AgentRun, clock.now, 20)]
    assert rows
    stay = changed(write, stay, change)
    for row in rows:
        try:
            row.perform(timezone.now)
        except LeaseLostError:
            pass
    assert fired() == []
    until_the_next_day(clock)
    expected = [] if change in ("never", "flipped") else [(stay.checkin_at + offset).isoformat()]
    assert fired() == expected


@each_timer
@each_way
def test_13_flipped_and_flipped_back(timer, write, clock):
    offset = timer()
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 5 * HOUR)
    drain()
    write(stay, status="cancelled")
    clock.tick(HOUR)
    drain()
    write(stay, status="confirmed")
    until_the_next_day(clock)
    assert fired() == [(stay.checkin_at + offset).isoformat()]


@each_timer
@each_change
def test_13_after_it_has_fired(timer, change, clock):
    """A timer that has fired does not fire again."""
    offset = timer()
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 5 * HOUR)
    clock.now = stay.checkin_at + offset
    drain()
    drain()
    assert len(fired()) == 1
    changed(save, stay, change)
    until_the_next_day(clock)
    assert len(fired()) == 1
