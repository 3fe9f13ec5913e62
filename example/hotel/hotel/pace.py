"""Time at the hotel: real hours in a project, seconds in the demo."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings


def hours(number: float) -> timedelta:
    """Return ``number`` hours as long as ``settings.HOTEL_HOUR`` says they are."""
    return timedelta(seconds=settings.HOTEL_HOUR.total_seconds() * number)
