"""Starts the night audit of a day, and sends it the signal that the day is closed."""

from __future__ import annotations

from typing import Any

from django_ai.automation import engine

DAY_CLOSED = "desk:day_closed"


def open_day(day: str) -> Any:
    """Start the night audit of ``day`` and return its run, which waits until the day is closed."""
    return engine.start("hotel.night_audit", day=day)


def close_day(takings: int, **notes: str) -> None:
    """Wake every night audit that waits. It stores ``takings`` in its Context, which has no fields for ``notes``."""
    engine.signal(DAY_CLOSED, {"takings": takings, **notes})
