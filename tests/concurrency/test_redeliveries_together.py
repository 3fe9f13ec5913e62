"""Redeliveries and calls for events race with workers and with each other: each thing happens once."""

from __future__ import annotations

from functools import partial

import pytest

from django_ai.automation import AgentManager, Retry, agent, emit, handler
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import StateError
from django_ai.automation.queues.drain import drain
from tests.support.agents import Nothing
from tests.support.free_events import PAID, hear, paid
from tests.support.front_desk import book
from tests.support.race import together
from tests.support.rows import effects, event_of, leave
from tests.support.scheduled_events import DAY

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 6


def kept(raised: list[BaseException]) -> list[BaseException]:
    """Return the exceptions of a race that are no refusals."""
    return [error for error in raised if not isinstance(error, StateError)]


@pytest.mark.slow
def test_two_redeliveries_beside_two_workers_handle_the_event_once(work):
    broken = [True]

    @agent("desk", spawn_on="booking_created", default_retry=Retry(max_attempts=1))
    class Desk:
        Context = Nothing

        @classmethod
        def create_context(cls):
            return Nothing()

        @handler("booking_created")
        def created(self, event):
            if broken:
                raise ValueError("down")
            leave(f"created {event.pk}")

    for _ in range(ROUNDS):
        broken[:] = [True]
        event = event_of(book(), "booking_created")
        work()
        broken.clear()
        again = [partial(AgentManager.redeliver, event)] * 2
        assert kept(together(*again, drain, drain)) == []
        drain()
        assert HandlerExecution.objects.get(event=event).status == "completed"
        assert effects().count(f"created {event.pk}") == 1


@pytest.mark.slow
def test_an_event_that_is_fired_and_moved_by_several_occurs_once(clock, work):
    hear(paid())
    for number in range(ROUNDS):
        event = emit(PAID, {"n": number}, at=clock() + DAY)
        fires = [partial(_fire, event.pk)] * 2
        assert kept(together(*fires, partial(_move, event.pk, clock() + 2 * DAY), drain)) == []
        drain()
        event.refresh_from_db()
        if event.status == "pending":  # moved after it was fired
            assert event.at == clock() + 2 * DAY
            event.fire_now()
            drain()
        assert effects().count(f"heard {{'n': {number}}}") == 1


def _fire(pk: int) -> None:
    Event.objects.get(pk=pk).fire_now()


def _move(pk: int, at: object) -> None:
    Event.objects.get(pk=pk).move(at)  # type: ignore[arg-type]
