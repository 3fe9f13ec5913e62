"""What people at the desk tell the automations: a day begins, a day is closed."""

from __future__ import annotations

from typing import Any

from django_ai.automation import engine

DAY_CLOSED = "desk:day_closed"


def open_day(day: str) -> Any:
    """Start the night audit of ``day`` and return its run; it waits until the day is closed."""
    return engine.start("hotel.night_audit", day=day)


def close_day(takings: int, **notes: str) -> None:
    """Wake every night audit that waits. Of the payload it takes what its Context knows, and ``notes`` it does not."""
    engine.signal(DAY_CLOSED, {"takings": takings, **notes})
