"""Occurrences of immediate events."""

from __future__ import annotations

from django_ai.automation.events.models import Event

CONFIRMED = "reservation_confirmed"


def occurred(name: str = CONFIRMED) -> int:
    return Event.objects.occurred().filter(event_name=name).count()
