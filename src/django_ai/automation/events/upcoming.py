"""``upcoming(entity)``: what is planned for one object, in one list, with dates and reasons.

Each layer registers a source, which reads its own rows. A source also lists what has no row yet: a callback that a
pending event will call is nothing but a subscription and a date. The number of queries depends on the kinds of rows,
not on their number, and no condition is evaluated: an event row has the result of the last evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dateutil.relativedelta import relativedelta
from django.db.models import F, Model, Q
from django.utils import timezone
from django.utils.translation import gettext, ngettext

from ..exceptions import DefinitionError
from ..values.clock import UNITS, Offset, offset_key
from .entities import rows_about
from .models import Event, EventStatus
from .subscriptions import Subscription

__all__ = ["Upcoming", "upcoming"]


@dataclass(frozen=True, slots=True)
class Upcoming:
    """One thing that is planned for an object; ``upcoming()`` returns a list of them.

    Attributes:
        kind: What it is, a string: ``"event"`` (it occurs), ``"callback"`` (a function is called), ``"workflow"`` (a
            run starts or continues), ``"agent"`` (one is spawned), or ``"handler"`` (an agent handles an event).
        name: The event, callback, workflow or agent; of a handler ``"agent.method"``.
        at: When, a datetime. None: not at a known time, because it waits for something else.
        reason: Why then, or what it waits for, as a string for people.
        row: The row that has the timer: an ``Event``, ``CallbackExecution``, ``WorkflowRun``, ``AgentRun`` or
            ``HandlerExecution``.

    Example:
        The next date of a booking::

            first = next((each for each in upcoming(booking) if each.at is not None), None)
    """

    kind: str
    name: str
    at: datetime | None
    reason: str
    row: Any


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a source gets: the object, its unfinished events (with the object as their ``entity``), the moment, and how
    many rows it may read of each kind."""

    entity: Model
    events: list[Event]
    now: datetime
    limit: int

    def rows(self, path: str = "") -> Q:
        """Return the condition for rows that belong to the object; see ``rows_about``."""
        return rows_about(self.entity, path)


Source = Callable[[Outlook], Iterable[Upcoming]]

_sources: list[Source] = []


def register_source(source: Source) -> None:
    """List also what ``source`` yields. Idempotent: ``ready()`` may run again."""
    if source not in _sources:
        _sources.append(source)


def upcoming(entity: Model, *, limit: int = 200) -> list[Upcoming]:
    """Return what is planned for an object, the earliest first.

    The list has the object's scheduled events, the callbacks and handlers that they will call, the runs that they have
    planned or will start, the agents that they will spawn, everything of the object that waits for a retry or for an
    operator, and the runs that wait: for a time, a signal or an event of the object. What waits for no time comes last.

    It reads a fixed number of queries and evaluates no condition. What is false now may become true: the reason says
    so. Immediate events that no save has made true are not listed, and neither are agents that only wait for events.

    Args:
        entity: A saved model instance.
        limit: The greatest number of things to return, a positive whole number. Default 200.

    Returns:
        A list of ``Upcoming``.

    Raises:
        DefinitionError: If ``entity`` is not a saved model instance, or if ``limit`` is invalid.

    Example:
        Show the future of a booking on its page::

            for each in upcoming(booking):
                print(each.at, each.kind, each.name, each.reason)
    """
    if not isinstance(limit, int) or limit < 1:
        raise DefinitionError(f"upcoming(limit={limit!r}): give a positive whole number.")
    rows = Event.unfinished().filter(rows_about(entity)).order_by(F("wake_at").asc(nulls_last=True), "pk")
    events = list(rows[:limit])
    for event in events:
        event.entity = entity
    outlook = Outlook(entity, events, timezone.now(), limit)
    found = [each for source in _sources for each in source(outlook)]
    found.sort(key=lambda each: (each.at is None, each.at or outlook.now))
    return found[:limit]


def planned_moment(event: Event, subscription: Subscription) -> tuple[datetime, str] | None:
    """Return when ``event`` notifies a subscriber, and why then. None: it has done so, or no date is known."""
    if event.at is None or event.status not in (EventStatus.PENDING, EventStatus.PROCESSED):
        return None
    if subscription.offset is None:
        if event.status != EventStatus.PENDING:
            return None
        at, reason = event.at, gettext("when %s occurs") % repr(event.event_name)
        if subscription.window is not None:
            reason = gettext("%s, collected with other events") % reason
    else:
        if subscription.uses_event_timer and subscription.milestone in event.fired:
            return None
        at, reason = event.moment_of(subscription.offset), offset_text(subscription.offset, repr(event.event_name))
        if event.timezone and not isinstance(subscription.offset, timedelta):
            reason += f" ({event.timezone})"
    if not event.armed and (event.status == EventStatus.PENDING or subscription.recheck):
        return at, if_true(reason)
    return at, gettext("%s, if its condition is still true then") % reason if subscription.recheck else reason


def if_true(reason: str) -> str:
    """Return why an event occurs whose condition is false now."""
    return gettext("%s, if its condition is true by then (it is false now)") % reason


def offset_text(offset: Offset, event: str = "") -> str:
    """Return an offset in words, in the active language: ``"3 hours before"``, ``"at 18:00, 1 day before"``.

    ``event``: what the event is called that it counts from: ``"3 hours before 'checkin_due'"``.
    """
    if not isinstance(offset, timedelta):
        return _wall_clock_text(offset, event) or _relative(
            gettext("%s from"), gettext("%(distance)s from %(event)s"), offset_key(offset), event
        )
    rest, words = abs(offset), []
    for name, unit in zip(("day", "hour", "minute", "second", "microsecond"), UNITS.values(), strict=True):
        number, rest = divmod(rest, unit)
        if number:
            words.append(_counted(number, name))
    return _before_or_after(" ".join(words), event, is_after=offset >= timedelta(0))


def _before_or_after(distance: str, event: str, *, is_after: bool) -> str:
    if is_after:
        return _relative(gettext("%s after"), gettext("%(distance)s after %(event)s"), distance, event)
    return _relative(gettext("%s before"), gettext("%(distance)s before %(event)s"), distance, event)


def _relative(alone: str, with_event: str, distance: str, event: str) -> str:
    return with_event % {"distance": distance, "event": event} if event else alone % distance


def _wall_clock_text(offset: relativedelta, event: str) -> str:
    """Return the words for a distance and a time of the day. Empty: the offset sets something else, too."""
    parts = {name: int(getattr(offset, f"{name}s")) for name in ("year", "month", "day", "hour", "minute", "second")}
    signs = {value > 0 for value in parts.values() if value}
    is_plain = not any((offset.year, offset.month, offset.day, offset.weekday, offset.leapdays, offset.microseconds))
    is_to_the_minute = not (offset.second or offset.microsecond) and (offset.hour is None) == (offset.minute is None)
    if not (is_plain and is_to_the_minute) or len(signs) > 1:
        return ""
    time = "" if offset.hour is None else gettext("at %s") % f"{offset.hour:02}:{offset.minute:02}"
    distance = " ".join(_counted(abs(value), name) for name, value in parts.items() if value)
    if not distance:
        on_the_day = gettext("%s on the day of"), gettext("%(distance)s on the day of %(event)s")
        return _relative(*on_the_day, time, event) if time else ""
    words = _before_or_after(distance, event, is_after=True in signs)
    return f"{time}, {words}" if time else words


def _counted(number: int, name: str) -> str:
    words = {
        "year": ngettext("%d year", "%d years", number),
        "month": ngettext("%d month", "%d months", number),
        "day": ngettext("%d day", "%d days", number),
        "hour": ngettext("%d hour", "%d hours", number),
        "minute": ngettext("%d minute", "%d minutes", number),
        "second": ngettext("%d second", "%d seconds", number),
        "microsecond": ngettext("%d microsecond", "%d microseconds", number),
    }
    return words[name] % number
