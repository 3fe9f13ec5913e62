"""What the checks measure with."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hotel.models import Message

from .story import Day

ON_TIME = 1.0  # what a busy machine needs; alone it is some hundredths of a second


def message(day: Day, name: str, text: str) -> Any:
    return Message.objects.filter(reservation=day.guests[name].pk, text__contains=text).first()


def seconds(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds()


def in_time(happened: datetime, due: datetime) -> str:
    """Say how late something was. Asserts that it was not early, and not late by more than a moment."""
    late = seconds(due, happened)
    assert 0 <= late <= ON_TIME, f"{late:+.2f} s"
    return f"{late * 1000:.0f} ms late"
