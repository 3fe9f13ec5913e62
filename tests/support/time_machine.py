"""Bookings, and callbacks that record how long after noon they ran."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.utils import timezone

from django_ai.automation.events.callbacks import on_event
from tests.apps.reservations.models import Reservation
from tests.support.rows import leave

DUE, CONFIRMED = "checkin_due", "reservation_confirmed"
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)


def book(ahead=3 * DAY, **values) -> Reservation:
    return Reservation.objects.create(**{"status": "confirmed", "checkin_at": timezone.now() + ahead, **values})


def hear(name, event=DUE, decorator=on_event, **options):
    """Declare a callback that records its name and the time at which it ran."""

    @decorator(event, name=name, **options)
    def handler(event):
        leave(f"{name} {stamp()}")


def stamp(moment=None) -> str:
    """Return the time since noon."""
    return str((moment or timezone.now()) - NOON)
