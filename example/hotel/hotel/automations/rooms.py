"""Housekeeping tasks that depend on a date and need no workflow."""

from __future__ import annotations

from dateutil.relativedelta import relativedelta

from django_ai.automation import on_event
from django_ai.automation.events.models import Event

from ..models import HousekeepingTask
from ..pace import hours


@on_event("checkin_due", offset=relativedelta(days=-1, hour=18, minute=0, second=0, microsecond=0))
def count_for_breakfast(event: Event) -> None:
    """At 18:00 on the day before, by the calendar. For a later booking it runs at once."""
    HousekeepingTask.objects.create(reservation=event.entity, what="Lay one more place")


@on_event("checkin_due", offset=hours(-1))
def air_the_room(event: Event) -> None:
    HousekeepingTask.objects.create(reservation=event.entity, what="Air the room")
