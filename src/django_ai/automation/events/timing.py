"""Timing: when an event row is next due. Pure: no database, no clock of its own.

The row is the timer of all its *milestones*: its occurrence at ``at``, and each subscriber's offset from it. A
milestone fires once, when its time has come and the condition holds. While the condition is false, the row is evaluated
again at each later milestone, and expires ``grace`` after the last one that could still fire. After the event has
occurred, the condition holds back only the offsets that were declared with ``recheck=True``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from ..queues.causation import CHAIN_BREAK
from ..queues.tracing import linked
from ..values.clock import RECHECK, Offset, later
from ..values.zones import zone_or_default
from .callbacks import CANCELLED, CREATED, callbacks_of
from .definitions import EventDefinition
from .models import Event, EventStatus
from .subscriptions import subscriptions

FIRE_NOW = "@now"
"""In ``Event.fired`` of a pending event: it is due, although its date has not come (``event.fire_now()``)."""


def offsets_of(event: Event) -> dict[str, Offset]:
    """Return the distinct offsets that subscribers want for this event, by milestone."""
    return subscriptions.offsets(event.event_name, event.namespace)


def possible_offsets_of(declared_as: str) -> list[Offset]:
    """Return every offset that may apply to events of a definition, for any name and namespace."""
    return subscriptions.possible_offsets(declared_as)


def plan_of(declared_as: str) -> str:
    """Return a digest of the subscriptions to events of a definition.

    A row with another digest (``planned_for``) had its timer set for other subscribers.
    """
    return subscriptions.plan_of(declared_as)


def depth_after(event: Event, offset: Offset | None) -> int:
    """Return the depth in the chain of causes of an execution that ``event`` causes at ``offset``."""
    if offset is None or event.at is None or event.occurred_at is None:
        return event.depth + 1
    return 1 if event.moment_of(offset) >= later(event.occurred_at, CHAIN_BREAK) else event.depth + 1


def trace_after(event: Event, offset: Offset | None) -> str | None:
    """Return the trace context of what ``event`` causes at ``offset``: after an offset a new trace starts."""
    return linked(event.trace_context) if offset else event.trace_context


def is_far_ahead(event: Event, now: datetime) -> bool:
    """Return whether even the earliest offset of the event is far enough ahead to start a new chain of causes."""
    if event.at is None:
        return False
    times = [event.at, *(event.moment_of(offset) for offset in possible_offsets_of(event.declared_as))]
    return min(times) >= later(now, CHAIN_BREAK)


def has_callback(event: Event, milestone: str) -> bool:
    """Return whether a callback subscribes to the creation or cancellation of this event."""
    return any(each.fixed_milestone == milestone for each in callbacks_of(event.event_name, event.namespace))


def announces_cancellation(event: Event) -> bool:
    """Return whether a callback is called if this event is cancelled. A transition that was taken back in its own
    transaction was neither created nor can it be cancelled."""
    return has_callback(event, CANCELLED) and CANCELLED not in event.fired


def not_fired(event: Event) -> dict[str, datetime]:
    """Return when each milestone that has not fired is due. An event without a date has none."""
    if event.at is None:
        return {}
    times = {key: event.moment_of(offset) for key, offset in offsets_of(event).items() if key not in event.fired}
    if event.status == EventStatus.PENDING:
        # When it was recorded is in the past by every clock.
        times[""] = min(event.at, event.event_created_at) if FIRE_NOW in event.fired else event.at
    return times


def held_back(event: Event) -> dict[str, datetime]:
    """Return those of ``not_fired`` that a false condition keeps from firing.

    For an event that has occurred these are the offsets declared with ``recheck=True``: the others ignore the
    condition.
    """
    times = not_fired(event)
    if event.status != EventStatus.PROCESSED:
        return times
    return {milestone: time for milestone, time in times.items() if milestone.endswith(RECHECK)}


def rearm_future(event: Event, now: datetime) -> None:
    """Let the offsets of a pending event fire again if its date has moved and they are in the future again.

    No callback runs twice: each execution is unique for its event and milestone. Subscribers that did not exist the
    first time are notified.
    """
    if event.status != EventStatus.PENDING or event.at is None or not event.fired:
        return
    ahead = {key for key, offset in offsets_of(event).items() if event.moment_of(offset) > now}
    event.fired = [milestone for milestone in event.fired if milestone not in ahead]


def too_late(event: Event, definition: EventDefinition, now: datetime) -> list[str]:
    """Return the offsets of an event that has occurred whose grace period is over."""
    if event.status != EventStatus.PROCESSED:
        return []
    return [milestone for milestone, time in not_fired(event).items() if later(time, definition.grace) < now]


def is_moved(event: Event, at: datetime | None, timezone: str) -> bool:
    """Return whether ``at``, in the time zone ``timezone``, is another date than that of the event. The same day in
    another time zone is not, though it begins at another moment."""
    if at == event.at or at is None or event.at is None or timezone == event.timezone or not event.is_on_a_day:
        return at != event.at
    return at.astimezone(zone_or_default(timezone)).date() != event.at.astimezone(event.zone).date()


def occurs_again_at_new_date(event: Event) -> bool:
    """Return whether an event with ``rearm`` occurs again at a new date: a milestone has fired at the current one."""
    begun = any(milestone not in (CREATED, CANCELLED, FIRE_NOW) for milestone in event.fired)
    return event.status == EventStatus.PROCESSED or (event.status == EventStatus.PENDING and begun)


def next_wake(event: Event, definition: EventDefinition, now: datetime) -> datetime | None:
    """Return when the row is next due, or None."""
    if event.status == EventStatus.EXPIRED:
        return None
    if event.status == EventStatus.PARKED:
        return event.wake_at  # None unless it awaits a deploy
    if event.status == EventStatus.CANCELLED:
        return now if announces_cancellation(event) else None
    if has_callback(event, CREATED) and CREATED not in event.fired:
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
    times_to_evaluate = [time for milestone, time in times.items() if milestone not in held]
    if held:
        grace_ends = _grace_ends_at(event, held, definition.grace)
        times_to_evaluate.append(min((time for time in held.values() if time > now), default=grace_ends))
    return min(times_to_evaluate)


def _grace_ends_at(event: Event, times: Mapping[str, datetime], grace: timedelta) -> datetime:
    last = event.at if event.status == EventStatus.PENDING and event.at else max(times.values())
    return later(last, grace)


def grace_ends_at(event: Event, definition: EventDefinition) -> datetime | None:
    """Return when the grace period of every milestone that a false condition holds back is over; None: there is no such
    milestone."""
    held = held_back(event)
    return _grace_ends_at(event, held, definition.grace) if held else None


def is_past_grace(event: Event, definition: EventDefinition, now: datetime) -> bool:
    """Return whether the grace period of every milestone that the false condition holds back is over."""
    ends = grace_ends_at(event, definition)
    return ends is not None and now >= ends


def due_milestones(event: Event, now: datetime) -> Iterable[str]:
    """Return the milestones that are due and not held back by the condition, the earliest first."""
    held = {} if event.armed else held_back(event)
    times = {key: time for key, time in not_fired(event).items() if key not in held}
    return sorted((key for key, time in times.items() if time <= now), key=lambda key: (times[key], key != ""))


def skip_note(milestones: Iterable[str], reason: str) -> str:
    """Return the note in ``error`` about skipped offsets of an event that has occurred."""
    return f"Skipped {', '.join(milestone.removesuffix(RECHECK) for milestone in milestones if milestone)}: {reason}."
