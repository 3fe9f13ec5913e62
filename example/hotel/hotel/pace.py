"""The length of an hour (a real hour normally, three seconds in the demo), and when the night comes."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings

REAL_HOUR = timedelta(hours=1)


def hours(number: float) -> timedelta:
    """Return ``number`` hours of the length ``settings.HOTEL_HOUR``."""
    return timedelta(seconds=settings.HOTEL_HOUR.total_seconds() * number)


def nightly() -> str | timedelta:
    """Return when the night comes: at two in the morning; in the demo, which has no night, every hour and a half."""
    return "0 2 * * *" if REAL_HOUR <= settings.HOTEL_HOUR else hours(1.5)
