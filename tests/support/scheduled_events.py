"""Reservations with a date, and callbacks on it."""

from __future__ import annotations

from datetime import timedelta

from tests.apps.reservations.models import Reservation

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def book(clock, ahead=HOUR, **values) -> Reservation:
    return Reservation.objects.create(**{"status": "confirmed", "checkin_at": clock() + ahead, **values})
