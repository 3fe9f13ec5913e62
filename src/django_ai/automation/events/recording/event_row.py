"""The event row in memory: which values it gets from a ``DesiredEvent``, and whether it has to change at all.

Nothing here writes; ``recorder`` does.
"""

from __future__ import annotations

from datetime import datetime

from ...conf import conf
from ...db.writer import alias_of
from ...exceptions import EventStormError
from ...queues.causation import current_cause
from ...values.clock import later
from ..callbacks import CREATED
from ..commit_batch import CommitBatch
from ..definitions import EventTrigger
from ..evaluation import RETRY
from ..models import Event, EventStatus
from ..subscribers import subscribers
from ..timing import (
    held_back,
    lies_ahead,
    moves_again,
    next_wake,
    plan_of,
    rearm_future,
    skip_note,
    too_late,
)
from .desired_event import UNKNOWN, DesiredEvent
from .entity_state import ALREADY


def needs_row(wanted: DesiredEvent) -> bool:
    """Say whether there is anything to keep: of what counts writes, a row is a write, or what the fields were."""
    definition = wanted.definition
    return not definition.triggers or bool(definition.watch_fields or wanted.armed or wanted.error)


def new_row(wanted: DesiredEvent, now: datetime, raw: bool, *, again: bool = False) -> Event:
    """Return the unsaved row for what is wanted. ``again``: it takes the place of one that was there before."""
    definition = wanted.definition
    cause = current_cause()
    # Nobody knows what the watched fields were before: this write says only what they are.
    blind = bool(definition.watch_fields) and wanted.write == EventTrigger.UPDATE and not again
    row = Event(
        entity_type=wanted.declared.label,
        entity_id=wanted.entity_id,
        event_name=wanted.name,
        declared_as=definition.name,
        namespace=wanted.namespace,
        event_created_at=now,
        active_key=wanted.key,
        at=None if wanted.at is UNKNOWN else wanted.at,
        armed=wanted.armed and not blind,
        trigger=wanted.write.value if wanted.write and not blind else "",
        watched="" if wanted.watched is UNKNOWN else wanted.watched,
        caused_by=cause.label if cause else "",
        depth=cause.depth if cause else 0,
    )
    row.failed_evaluation = wanted.failed_evaluation
    if wanted.error and not wanted.is_retryable:
        row.set_parked(wanted.error, now)
    elif wanted.already:
        row.status, row.error, row.fired = EventStatus.EXPIRED, ALREADY, [CREATED]
    elif raw and not definition.is_scheduled and wanted.armed:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its condition already true."
    elif definition.is_scheduled and row.at is not None and later(row.at, definition.grace) < now:
        row.status, row.error = EventStatus.EXPIRED, f"Its date was already past by more than {definition.grace}."
    elif raw and definition.is_scheduled and row.at is not None and row.at <= now:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its date already past."
    if raw:
        row.fired = [CREATED]
    _set_timer(row, wanted, now)
    if wanted.error and row.status == EventStatus.PENDING:
        _ask_again(row, wanted.error, now)
    return row


def _ask_again(row: Event, error: str, now: datetime) -> None:
    """Let a worker ask once more what raised in a save: the first attempt of ``occurrence.RETRY``."""
    row.attempt, row.error, row.lease = 1, error, None
    row.wake_at = now + RETRY.base_delay


def _set_timer(row: Event, wanted: DesiredEvent, now: datetime) -> None:
    """Set ``wake_at``."""
    definition = wanted.definition
    if not definition.is_scheduled and row.armed and row.at is None and row.status == EventStatus.PENDING:
        row.at = now
    if row.depth and definition.is_scheduled and lies_ahead(row, now):
        row.depth = 0
    if row.depth > conf().MAX_DEPTH and row.status == EventStatus.PENDING and row.armed and row.at is not None:
        row.set_parked(
            f"{EventStormError.__name__}: {row} is number {row.depth} in a chain of events that cause each other "
            f"(last by {row.caused_by}); AUTOMATION['MAX_DEPTH'] is {conf().MAX_DEPTH}. Break the circle, then resume.",
            now,
        )
    row.wake_at, row.planned_for = next_wake(row, definition, now), plan_of(row.declared_as)


def _date(row: Event, wanted: DesiredEvent) -> datetime | None:
    return row.at if wanted.at is UNKNOWN or not wanted.definition.is_scheduled else wanted.at


def differs(row: Event, wanted: DesiredEvent) -> bool:
    if wanted.definition.triggers:
        return _counts(row, wanted) or wanted.watched not in (UNKNOWN, row.watched)
    if row.status == EventStatus.CANCELLED:
        return False
    if wanted.error and row.attempt:
        return row.status == EventStatus.PENDING and row.at != _date(row, wanted)  # a worker is about to ask again
    if wanted.error:
        return row.status == EventStatus.PENDING
    if row.attempt and not row.armed:
        return True  # what raised has been answered
    names = (wanted.name, wanted.namespace)
    renamed = row.status == EventStatus.PENDING and (row.event_name, row.namespace) != names
    return renamed or (row.at, row.armed) != (_date(row, wanted), wanted.armed)


def _counts(row: Event, wanted: DesiredEvent) -> bool:
    """Say whether this write is one that the event occurs at. All writes of one transaction are one."""
    if not wanted.write or not (wanted.armed or wanted.error):
        return False
    if wanted.definition.watch_fields and wanted.watched in (UNKNOWN, row.watched):
        return False
    if not row.armed or row.status != EventStatus.PENDING:
        return True
    return not CommitBatch.of(alias_of(Event)).has(row)


def occurs_again(row: Event, wanted: DesiredEvent, now: datetime) -> bool:
    """Say whether the event is to occur once more, in a row of its own."""
    definition, at = wanted.definition, _date(row, wanted)
    if definition.triggers:
        is_another = row.armed or row.attempt > 0 or row.status != EventStatus.PENDING
        return _counts(row, wanted) and is_another
    if not definition.rearm or wanted.error:
        return False
    if not definition.is_scheduled:
        return wanted.armed and not row.armed and row.status in (EventStatus.PROCESSED, EventStatus.EXPIRED)
    if at is None or at == row.at or later(at, definition.grace) < now:
        return False
    return moves_again(row) or (
        row.status == EventStatus.PENDING and any(listener.has_begun(row) for listener in subscribers())
    )


def apply_desired(row: Event, wanted: DesiredEvent, now: datetime) -> None:
    """Take over what the entity says now."""
    row.failed_evaluation = wanted.failed_evaluation
    definition, at = wanted.definition, _date(row, wanted)
    armed, counts = wanted.armed, bool(definition.triggers) and _counts(row, wanted)
    if wanted.watched is not UNKNOWN:
        row.watched = wanted.watched
    if definition.triggers:
        armed = row.armed or (counts and wanted.armed)
    if counts or (row.status == EventStatus.PENDING and not definition.triggers):
        row.event_name, row.namespace = wanted.name, wanted.namespace
        row.trigger = wanted.write.value if wanted.write else ""
    if armed and not row.armed:
        cause = current_cause()
        row.caused_by, row.depth = (cause.label, cause.depth) if cause else ("", 0)
        if row.status == EventStatus.PENDING and not definition.is_scheduled:
            at = now
    is_late = definition.is_scheduled and at is not None and later(at, definition.grace) < now
    if row.status == EventStatus.PENDING and is_late and armed and not row.armed:
        row.status, row.error = EventStatus.EXPIRED, "Its condition turned true only after its grace."
    if row.status == EventStatus.EXPIRED and at is not None and at != row.at and later(at, definition.grace) >= now:
        # It never occurred, and its date was moved to where it still may.
        row.status, row.error = EventStatus.PENDING, ""
    # Where nothing is overdue, an offset whose time is long past is new, and not made up for, as in the reconciliation.
    is_quiet = at == row.at and (row.wake_at is None or row.wake_at > now)
    turned, row.at, row.armed = armed and not row.armed, at, armed
    rearm_future(row, now)
    if turned:
        held = held_back(row)
        if late := [milestone for milestone in too_late(row, definition, now) if milestone in held]:
            row.fired = [*row.fired, *late]
            row.error = skip_note(late, "recheck=True, and its condition turned true only after its grace")
    if is_quiet:
        row.fired = [*row.fired, *too_late(row, definition, now)]
    if wanted.error and not wanted.is_retryable:
        row.set_parked(wanted.error, now)
    is_asked = bool(row.attempt) and (bool(wanted.error) or bool(definition.triggers))
    if row.attempt and not is_asked:
        row.attempt, row.error = 0, ""
    asked_at = row.wake_at if row.lease is None else now + RETRY.base_delay
    _set_timer(row, wanted, now)
    if is_asked and row.status == EventStatus.PENDING:
        row.wake_at, row.lease = asked_at, None
    elif wanted.error and row.status == EventStatus.PENDING:
        _ask_again(row, wanted.error, now)
