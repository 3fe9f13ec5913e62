"""Trips of hotels in many time zones, with events on their dates."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from django_ai.automation import (
    EventDefinition,
    agent,
    complete,
    event_workflow,
    handler,
    on_event,
    register_events,
    step,
)
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.events.models import Event
from tests.apps.reservations.models import Hotel, Trip
from tests.support.rows import effects, leave


def declare_arrival(timezone: Any = "hotel__tz", date_field: str = "arrives_at", **options: Any) -> EventDefinition:
    """Declare the event ``arrival`` of trips, and return its definition."""
    definition = EventDefinition("arrival", date_field=date_field, timezone=timezone, **options)
    register_events(Trip, definition)
    return definition


def book_trip(tz: str | None = "America/New_York", **values: Any) -> Trip:
    return Trip.objects.create(hotel=Hotel.objects.create(tz=tz), **values)


def the_event() -> Event:
    return Event.objects.get(event_name="arrival", active_key__isnull=False)


def listen(kind: str, offset: Any, clock: Any, work: Any = None) -> None:
    """Let a callback, a workflow or a handler leave the time at which it is called, at ``offset`` from an arrival."""
    if kind == "callback":
        on_event("arrival", offset=offset, name="timed")(lambda event: leave(clock().isoformat()))
    elif kind == "workflow":

        @event_workflow("arrival", offset=offset, name="timed")
        class Timed:
            class Context(BaseModel):
                pass

            @step(start=True)
            def first(self):
                leave(clock().isoformat())
                return complete()

    else:

        @agent("timed")
        class Watcher:
            class Context(BaseModel):
                pass

            @handler("arrival", offset=offset, match={})
            def on_time(self, ctx):
                leave(clock().isoformat())

        AgentManager.spawn("timed")
        work()


def assert_runs_at(due: datetime, clock: Any, work: Any) -> None:
    """Assert that what ``listen`` has declared runs at ``due``, once."""
    clock.now = due - timedelta(microseconds=1)
    work()
    assert effects() == []
    clock.now = due
    work()
    work()
    assert effects() == [due.isoformat()]
