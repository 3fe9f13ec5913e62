"""Time is an argument: each entry point creates one ``Clock`` and passes it down.

A live clock returns the current time; a fixed one always returns the same moment (tests). This module also has the
arithmetic of moments and offsets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

from dateutil.relativedelta import relativedelta
from django.conf import settings
from django.utils import timezone

from ..exceptions import DefinitionError, NaiveDatetimeError

Offset = timedelta | relativedelta
Clock = Callable[[], datetime]


def clock_at(now: datetime | None) -> Clock:
    """Return a clock fixed at ``now``, or the live one. Raises ``NaiveDatetimeError``."""
    if now is None:
        return lambda: timezone.now()
    moment = aware(now, "now")
    return lambda: moment


def aware(value: Any, what: str, zone: tzinfo | None = None) -> datetime:
    """Return ``value`` as a moment in time. A ``date`` means its midnight in ``zone`` (default: ``TIME_ZONE``),
    whatever time zone a request has activated.

    Raises ``NaiveDatetimeError`` if ``USE_TZ`` is on and the time zone is missing, and ``DefinitionError`` if the value
    is not a date. ``what`` names the value in the message.
    """
    if isinstance(value, datetime):
        if settings.USE_TZ and timezone.is_naive(value):
            raise NaiveDatetimeError(
                f"{what} is {value!r}, which has no time zone. Use django.utils.timezone.make_aware(...), or "
                "timezone.now() instead of datetime.now()."
            )
        return value
    if isinstance(value, date):
        midnight = datetime.combine(value, time())
        return timezone.make_aware(midnight, zone or timezone.get_default_timezone()) if settings.USE_TZ else midnight
    raise DefinitionError(f"{what} is {value!r}, a {type(value).__name__}; give a datetime.")


def in_utc(moment: datetime) -> datetime:
    """Return ``moment`` in UTC, as the database returns it.

    Python finds a time of an hour that a clock change skips or repeats unequal to the same moment in any other zone
    (PEP 495), so moments are compared in UTC.
    """
    with contextlib.suppress(OverflowError):  # the ends of the calendar
        return moment if timezone.is_naive(moment) else moment.astimezone(UTC)
    return moment


def later(moment: datetime, delta: timedelta) -> datetime:
    """Return ``moment + delta`` in elapsed time, limited to the range of the calendar: "never" stays "never"."""
    if moment.tzinfo not in (None, UTC):
        # Python adds on the wall clock of a datetime's zone.
        with contextlib.suppress(OverflowError):
            moment = moment.astimezone(UTC)
    try:
        return moment + delta
    except OverflowError:
        if delta > timedelta(0):
            return datetime.max.replace(tzinfo=moment.tzinfo)
        return datetime.min.replace(tzinfo=moment.tzinfo)


def shift(moment: datetime, offset: Offset | None, zone: tzinfo | None = None) -> datetime:
    """Return ``moment`` plus ``offset``.

    A ``timedelta`` counts elapsed time. A ``relativedelta`` counts on the wall clock of ``zone`` (default:
    ``TIME_ZONE``), not of what a request has activated: one day before 15:00 is 15:00, also across a change to summer
    time, and one month before the 31st is the last of the month.
    """
    if not offset:
        return moment
    if isinstance(offset, timedelta):
        return later(moment, offset)
    try:
        if timezone.is_naive(moment):
            return moment + offset
        # Through UTC, so that a wall-clock time that does not exist becomes one that does (PEP 495).
        shifted: datetime = (moment.astimezone(zone or timezone.get_default_timezone()) + offset).astimezone(UTC)
    except (OverflowError, ValueError):
        return moment  # the end of the calendar, which means "never"
    return shifted


def variation(offset: Offset) -> timedelta:
    """Return an upper bound of how much the elapsed time of ``offset`` may differ between two dates or time zones."""
    if isinstance(offset, timedelta):
        return timedelta(0)
    day = timedelta(days=1)  # a clock change, and the next date in another zone
    if offset.year is not None or offset.month is not None:
        return 368 * day
    if offset.day is not None:
        return 35 * day
    found = 5 * day if offset.years or offset.months or offset.leapdays else day
    if offset.weekday is not None:
        found += 7 * day
    is_absolute = any(getattr(offset, name) is not None for name in ("hour", "minute", "second", "microsecond"))
    return found + day if is_absolute else found


UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "us": timedelta(microseconds=1),
}


def offset_key(offset: Offset | None) -> str:
    """Return a stable string for ``offset`` (``"-3h"``): equal offsets have equal strings. No offset is ``""``."""
    if not offset:
        return ""
    if isinstance(offset, timedelta):
        sign, rest = ("-", -offset) if offset < timedelta(0) else ("+", offset)
        text = ""
        for name, unit in UNITS.items():
            number, rest = divmod(rest, unit)
            text += f"{number}{name}" if number else ""
        return sign + text
    relative = ("years", "months", "days", "leapdays", "hours", "minutes", "seconds", "microseconds")
    absolute = ("year", "month", "day", "hour", "minute", "second", "microsecond", "weekday")
    parts = [f"{name}={value:+d}" for name in relative if (value := int(getattr(offset, name)))]
    # hour=0 means midnight, so it counts; hours=0 changes nothing.
    parts += [f"{name}={value}" for name in absolute if (value := getattr(offset, name)) is not None]
    return ",".join(parts)


RECHECK = "?"


def milestone_key(offset: Offset | None, recheck: bool) -> str:
    """Return the key of the milestone at ``offset``. One that checks the condition again is a separate milestone."""
    return offset_key(offset) + (RECHECK if recheck else "")


def check_recheck(recheck: Any, offset: Offset | None, what: str) -> None:
    """Raise ``DefinitionError`` unless ``recheck`` is a bool, and is False where there is no ``offset``."""
    if not isinstance(recheck, bool):
        raise DefinitionError(f"{what}: recheck={recheck!r} must be True or False.")
    if recheck and not offset:
        raise DefinitionError(
            f"{what}: recheck=True needs offset=: without an offset the condition is always checked. Remove recheck."
        )


def check_offset(offset: Any, what: str) -> None:
    """Raise ``DefinitionError`` unless ``offset`` is None, a timedelta or a relativedelta."""
    if offset is not None and not isinstance(offset, timedelta | relativedelta):
        raise DefinitionError(
            f"{what}: offset={offset!r} must be a timedelta or a relativedelta: negative before the event, positive "
            "after it."
        )


def check_duration(value: Any, what: str) -> None:
    """Raise ``DefinitionError`` unless ``value`` is a positive timedelta."""
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise DefinitionError(f"{what}={value!r} must be a positive timedelta.")
