"""Helpers of the checks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hotel.models import Message

from .story import Day

MAX_LATENESS_SECONDS = 1.0  # for a busy machine; on an idle one it is some hundredths of a second

MAX_CLOCK_ERROR_SECONDS = 0.25  # between the start of a call and the row that it writes


def message(day: Day, name: str, text: str) -> Any:
    return Message.objects.filter(reservation=day.guests[name].pk, text__contains=text).first()


def seconds(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds()


def in_time(happened: datetime, due: datetime) -> str:
    """Return how late something was, as a string. Asserts that it was neither early nor more than a second late."""
    late = seconds(due, happened)
    assert 0 <= late <= MAX_LATENESS_SECONDS, f"{late:+.2f} s"
    return f"{late * 1000:.0f} ms late"
