"""``Timetable``: when a schedule is due. Pure: a cron expression on the wall clock of a time zone, or an interval.

Cron expressions are parsed by ``cronsim``, which treats clock changes as Debian's cron does: a time that a change to
summer time skips is due right after the change, and a time that comes twice in autumn is due once, unless the
expression has a ``*`` in the hour or minute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from django.utils import timezone

from ..exceptions import DefinitionError
from .zones import zone_named

try:
    from cronsim import CronSim, CronSimError
except ImportError:  # the extra "schedules" is not installed: intervals work all the same
    CronSim, CronSimError = None, ValueError  # type: ignore[assignment,misc]
try:
    from cron_descriptor import get_description
except ImportError:
    get_description = None

MAX_CATCH_UP = 1000
"""Missed times that are made up for at most."""
MIN_INTERVAL = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Timetable:
    """When a schedule is due: ``when`` is a cron expression, or an interval as a timedelta."""

    when: str | timedelta
    zone: tzinfo | None = None
    """The time zone of a cron expression; None: ``TIME_ZONE``."""

    def after(self, moment: datetime, anchor: datetime) -> datetime | None:
        """Return the first time after ``moment``. ``anchor``: a time from which an interval counts. None: never."""
        if isinstance(self.when, timedelta):
            passed = max((moment - anchor) // self.when, 0) if moment >= anchor else -1
            return anchor + (passed + 1) * self.when
        return next(self._times(moment), None)

    def between(self, start: datetime, end: datetime, anchor: datetime, limit: int) -> list[datetime]:
        """Return the last ``limit`` times after ``start`` and up to ``end``, in ascending order."""
        found: deque[datetime] = deque(maxlen=limit)
        if isinstance(self.when, timedelta):
            first = self.after(max(start, end - self.when * limit), anchor)
            while first is not None and first <= end:
                found.append(first)
                first += self.when
            return list(found)
        for each in self._times(end + timedelta(minutes=1), reverse=True):
            if each <= start or len(found) == limit:
                break
            if each <= end:
                found.appendleft(each)
        return list(found)

    def _times(self, moment: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        zone = self.zone or timezone.get_default_timezone()
        for each in CronSim(str(self.when), moment.astimezone(zone), reverse=reverse):
            yield each.astimezone(UTC)

    def __str__(self) -> str:
        return describe(self.when)


def timetable(when: Any, zone: Any, what: str) -> Timetable:
    """Return the timetable that a schedule declares. Raises ``DefinitionError``."""
    if isinstance(when, timedelta):
        if when < MIN_INTERVAL:
            raise DefinitionError(f"{what}: {when!r} must be an interval of a second or more.")
        if zone is not None:
            raise DefinitionError(f"{what}: timezone={zone!r} is for a cron expression; an interval has none.")
        return Timetable(when)
    if not isinstance(when, str) or not when.strip():
        raise DefinitionError(
            f'{what}: {when!r} must be a cron expression, as in "0 2 * * *", or an interval, as in '
            "timedelta(minutes=15)."
        )
    if CronSim is None:
        raise DefinitionError(
            f'{what}: cron expressions need the package cronsim. Install "django-ai-automation[schedules]".'
        )
    found = Timetable(when.strip(), zone_named(zone, what))
    try:
        next(iter(CronSim(when.strip(), datetime(2000, 1, 1, tzinfo=UTC))))
    except CronSimError as error:
        raise DefinitionError(
            f"{what}: {when!r} is no cron expression ({error}). Write five fields: minute hour day-of-month month "
            'day-of-week, as in "30 2 * * MON-FRI".'
        ) from None
    except StopIteration:
        raise DefinitionError(f"{what}: {when!r} never comes.") from None
    return found


def describe(when: str | timedelta) -> str:
    """Return ``when`` in words: "At 02:00 AM"."""
    if isinstance(when, timedelta):
        return f"every {when}"
    return when if get_description is None else str(get_description(when))
