"""The length of an hour: a real hour normally, three seconds in the demo."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings


def hours(number: float) -> timedelta:
    """Return ``number`` hours of the length ``settings.HOTEL_HOUR``."""
    return timedelta(seconds=settings.HOTEL_HOUR.total_seconds() * number)
