"""When an event row is next due. Pure: no database, no clock of its own.

The row is the timer of all its *beats*: its occurrence at ``at``, and each subscriber's offset from it. A beat fires
once, when its time has come and the condition holds; while the condition is false the row is looked at again at each
later beat, and given up ``grace`` after the last one that could still fire. After the event has occurred the condition
holds back only what was declared with ``recheck=True``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from ..queues.causation import CHAIN_BREAK
from ..values.clock import RECHECK, Offset, later, shift
from .callbacks import CANCELLED, CREATED, callbacks_of
from .definitions import EventDefinition
from .models import Event, EventStatus
from .subscriptions import subscriptions


def offsets_of(event: Event) -> dict[str, Offset]:
    """Return the distinct offsets that somebody wants for this event, by their key."""
    return subscriptions.offsets(event.event_name, event.namespace)


def reach_of(declared_as: str) -> list[Offset]:
    """Return every offset that somebody may want for events of a definition, whatever their name and namespace."""
    return subscriptions.reach(declared_as)


def plan_of(declared_as: str) -> str:
    """Return a digest of what today's subscribers want of events of a definition: a row that has another one
    (``planned_for``) had its timer set for others."""
    return subscriptions.plan_of(declared_as)


def depth_after(event: Event, offset: Offset | None) -> int:
    """Return how deep in its chain of causes is what ``event`` causes at ``offset``."""
    if offset is None or event.at is None or event.occurred_at is None:
        return event.depth + 1
    return 1 if shift(event.at, offset) >= later(event.occurred_at, CHAIN_BREAK) else event.depth + 1


def lies_ahead(event: Event, now: datetime) -> bool:
    """Say whether nothing of the event, not even its earliest offset, comes before there was a rest."""
    if event.at is None:
        return False
    times = [event.at, *(shift(event.at, offset) for offset in reach_of(event.declared_as))]
    return min(times) >= later(now, CHAIN_BREAK)


def hears(event: Event, moment: str) -> bool:
    """Say whether anybody wants to know that this event was created or cancelled."""
    return any(each.moment == moment for each in callbacks_of(event.event_name, event.namespace))


def not_fired(event: Event) -> dict[str, datetime]:
    """Return when each beat that has not fired is due. Without a date nothing is."""
    if event.at is None:
        return {}
    times = {key: shift(event.at, offset) for key, offset in offsets_of(event).items() if key not in event.fired}
    if event.status == EventStatus.PENDING:
        times[""] = event.at
    return times


def held_back(event: Event) -> dict[str, datetime]:
    """Return those of ``not_fired`` that a false condition keeps from firing. For an event that has occurred these are
    the offsets declared with ``recheck=True``: the others fire whatever the condition says now."""
    times = not_fired(event)
    if event.status != EventStatus.PROCESSED:
        return times
    return {milestone: time for milestone, time in times.items() if milestone.endswith(RECHECK)}


def rearm_future(event: Event, now: datetime) -> None:
    """Forget what fired before the date of a pending event, where the date has moved so that it lies ahead again.

    Nobody does anything twice for it: each execution is unique for its event and beat. But who was not there the first
    time gets it.
    """
    if event.status != EventStatus.PENDING or event.at is None or not event.fired:
        return
    ahead = {key for key, offset in offsets_of(event).items() if shift(event.at, offset) > now}
    event.fired = [milestone for milestone in event.fired if milestone not in ahead]


def too_late(event: Event, definition: EventDefinition, now: datetime) -> list[str]:
    """Return the offsets of an event that has occurred which come too late: their grace is over."""
    if event.status != EventStatus.PROCESSED:
        return []
    return [milestone for milestone, time in not_fired(event).items() if later(time, definition.grace) < now]


def moves_again(event: Event) -> bool:
    """Say whether the event, if its definition rearms it, occurs once more at another date: something of it has
    happened at this one."""
    begun = any(milestone not in (CREATED, CANCELLED) for milestone in event.fired)
    return event.status == EventStatus.PROCESSED or (event.status == EventStatus.PENDING and begun)


def next_wake(event: Event, definition: EventDefinition, now: datetime) -> datetime | None:
    """Return when the row wants to be looked at next."""
    if event.status == EventStatus.EXPIRED:
        return None
    if event.status == EventStatus.PARKED:
        return event.wake_at  # for code: it is looked at again then; for a person: never
    if event.status == EventStatus.CANCELLED:
        return now if hears(event, CANCELLED) and CANCELLED not in event.fired else None
    if hears(event, CREATED) and CREATED not in event.fired:
        return now
    if event.pending_notifications:
        return now
    if not definition.is_scheduled and event.status == EventStatus.PENDING:
        return now if event.armed else None
    times = not_fired(event)
    if not times:
        return None
    if event.armed:
        return min(times.values())
    held = held_back(event)
    looks = [time for milestone, time in times.items() if milestone not in held]
    if held:
        given_up = _given_up_at(event, held, definition.grace)
        looks.append(min((time for time in held.values() if time > now), default=given_up))
    return min(looks)


def _given_up_at(event: Event, times: Mapping[str, datetime], grace: timedelta) -> datetime:
    last = event.at if event.status == EventStatus.PENDING and event.at else max(times.values())
    return later(last, grace)


def is_given_up(event: Event, definition: EventDefinition, now: datetime) -> bool:
    """Say whether a condition that is still false now comes too late for everything."""
    held = held_back(event)
    return bool(held) and now >= _given_up_at(event, held, definition.grace)


def due_milestones(event: Event, now: datetime) -> Iterable[str]:
    """Return the beats whose time has come and which the condition does not hold back, the earliest first."""
    held = {} if event.armed else held_back(event)
    times = {key: time for key, time in not_fired(event).items() if key not in held}
    return sorted((key for key, time in times.items() if time <= now), key=lambda key: (times[key], key != ""))


def skip_note(milestones: Iterable[str], reason: str) -> str:
    """Return what the ``error`` of an event that has occurred says of offsets that will not come."""
    return f"Skipped {', '.join(milestone.removesuffix(RECHECK) for milestone in milestones if milestone)}: {reason}."
