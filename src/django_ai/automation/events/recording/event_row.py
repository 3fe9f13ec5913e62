"""The event row in memory: which values it gets from a ``DesiredEvent``, and whether it has to change at all.

Nothing here writes; ``recorder`` does.
"""

from __future__ import annotations

from datetime import datetime

from ...conf import conf
from ...db.new_rows import new
from ...db.writer import alias_of
from ...exceptions import EventStormError
from ...queues.causation import cause_now
from ...queues.positions import bound_at, lower_bound
from ...queues.tracing import current_trace_context, linked
from ...values.clock import later
from ..callbacks import CANCELLED, CREATED
from ..commit_batch import CommitBatch
from ..definitions import EventDefinition, EventTrigger
from ..evaluation import EVALUATION_RETRY
from ..models import Event, EventStatus
from ..subscribers import subscribers
from ..timing import (
    held_back,
    is_far_ahead,
    is_moved,
    next_wake,
    occurs_again_at_new_date,
    plan_of,
    rearm_future,
    skip_note,
    too_late,
)
from .desired_event import NOT_WRITTEN, DesiredEvent
from .entity_state import HELD_BEFORE_NOTE
from .origin import Origin
from .values_before import ValuesBefore


def needs_row(desired: DesiredEvent) -> bool:
    """Return whether there is anything to record: with triggers, only a counted write or watched values."""
    definition = desired.definition
    return not definition.triggers or bool(definition.watch_fields or desired.armed or desired.error)


def new_row(desired: DesiredEvent, now: datetime, raw: bool, *, replaces: bool = False) -> Event:
    """Return the unsaved row of ``desired``. ``replaces``: it takes the place of an earlier row."""
    definition = desired.definition
    caused_by, depth = cause_now()
    # The previous values of the watched fields are unknown: this write only records the current ones.
    is_baseline = bool(definition.watch_fields) and desired.write == EventTrigger.UPDATE and not replaces
    row = new(
        Event,
        entity_type=desired.declared.label,
        entity_id=desired.entity_id,
        event_name=desired.name,
        declared_as=definition.name,
        namespace=desired.namespace,
        event_created_at=now,
        active_key=desired.key,
        at=None if desired.at is NOT_WRITTEN else desired.at,
        timezone=desired.timezone,
        armed=desired.armed and not is_baseline,
        trigger=desired.write.value if desired.write and not is_baseline else "",
        watched="" if desired.watched is NOT_WRITTEN else desired.watched,
        changed_values=None if is_baseline else desired.changed_values,
        caused_by=caused_by,
        depth=depth,
    )
    row.failed_evaluation, row.captured_in = desired.failed_evaluation, desired.captured_in
    if desired.error and not desired.is_retryable:
        row.set_parked(desired.error, now)
    elif desired.held_before:
        row.status, row.error, row.fired = EventStatus.EXPIRED, HELD_BEFORE_NOTE, [CREATED]
    elif raw and not definition.is_scheduled and desired.armed:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its condition already true."
    elif definition.is_scheduled and row.at is not None and later(row.at, definition.grace) < now:
        row.status, row.error = EventStatus.EXPIRED, f"Its date was already past by more than {definition.grace}."
    elif raw and definition.is_scheduled and row.at is not None and row.at <= now:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its date already past."
    if raw:
        row.fired = [CREATED]
    set_timer(row, definition, now, desired.origin)
    if desired.error and row.status == EventStatus.PENDING:
        _retry_evaluation(row, desired.error, now)
    return row


def _retry_evaluation(row: Event, error: str, now: datetime) -> None:
    """Let a worker evaluate again what raised in a save: this was the first attempt of ``EVALUATION_RETRY``."""
    row.attempt, row.error, row.lease = 1, error, None
    row.wake_at = now + EVALUATION_RETRY.base_delay


def set_timer(row: Event, definition: EventDefinition, now: datetime, origin: Origin | None = None) -> None:
    """Set ``wake_at`` and ``recorded_after``, and park an event that is too deep in a chain of causes."""
    if not definition.is_scheduled and row.armed and row.at is None and row.status == EventStatus.PENDING:
        row.at = now
    if (row.depth or row.trace_context) and definition.is_scheduled and is_far_ahead(row, now):
        row.depth, row.trace_context = 0, linked(row.trace_context)
    if row.depth > conf().MAX_DEPTH and row.status == EventStatus.PENDING and row.armed and row.at is not None:
        row.set_parked(
            f"{EventStormError.__name__}: {row} is number {row.depth} in a chain of events that cause each other "
            f"(the last cause: {row.caused_by}); AUTOMATION['MAX_DEPTH'] is {conf().MAX_DEPTH}. Break the cycle, then "
            "resume.",
            now,
        )
    row.wake_at, row.planned_for = next_wake(row, definition, now), plan_of(row.declared_as)
    if row.wake_at is None or row.wake_at > now or not row.armed or row.status != EventStatus.PENDING:
        row.recorded_after = None
    elif row.recorded_after is None and any(each.needs_recorded_after(row) for each in subscribers()):
        row.recorded_after = lower_bound() if origin is None else bound_at(origin.written_at, now)


def _date_of_row(row: Event, desired: DesiredEvent) -> datetime | None:
    return row.at if desired.at is NOT_WRITTEN or not desired.definition.is_scheduled else desired.at


def differs(row: Event, desired: DesiredEvent) -> bool:
    """Return whether ``desired`` changes the row."""
    if desired.definition.triggers:
        is_new = _is_counted_write(row, desired) or desired.watched not in (NOT_WRITTEN, row.watched)
        return is_new or (_is_own(row, desired) and _changes_differ(row, desired))
    if row.status == EventStatus.CANCELLED:
        return False
    if desired.error and row.attempt:
        # A worker is about to evaluate it again.
        return row.status == EventStatus.PENDING and row.at != _date_of_row(row, desired)
    if desired.error:
        return row.status == EventStatus.PENDING
    if row.attempt and not row.armed:
        return True  # the condition no longer raises
    names = (desired.name, desired.namespace)
    renamed = row.status == EventStatus.PENDING and (row.event_name, row.namespace) != names
    stored = (row.at, row.armed, row.timezone)
    return renamed or stored != (_date_of_row(row, desired), desired.armed, desired.timezone)


def _is_counted_write(row: Event, desired: DesiredEvent) -> bool:
    """Return whether the event occurs at this write. All writes of one transaction count as one."""
    if not desired.write or not (desired.armed or desired.error):
        return False
    if desired.definition.watch_fields and desired.watched in (NOT_WRITTEN, row.watched):
        return False
    return not _is_own(row, desired)


def _is_own(row: Event, desired: DesiredEvent) -> bool:
    """Return whether it is the open transaction that makes the event occur."""
    if not row.armed or row.status != EventStatus.PENDING:
        return False
    alias = alias_of(Event)
    if desired.captured_in is not None:  # or that it is the same transaction whose writes were captured
        return CommitBatch.of(alias).has(row, desired.captured_in)
    # In a TestCase the hooks of the batch outlive the block of the test that counts as a transaction.
    is_here = not desired.definition.compared_fields or row.active_key in ValuesBefore.of(alias).armed
    return is_here and CommitBatch.of(alias).has(row)


def _changes_differ(row: Event, desired: DesiredEvent) -> bool:
    return desired.change is not None and row.changed_values != desired.changed_values


def _is_undone(row: Event, desired: DesiredEvent) -> bool:
    """Return whether the open transaction, which has made the event occur, has taken back what it had changed."""
    if not _is_own(row, desired):
        return False
    if desired.definition.transition is not None:
        return not (desired.armed or desired.error)
    return bool(row.changed_values) and desired.change is not None and not desired.changed_values


def occurs_again(row: Event, desired: DesiredEvent, now: datetime) -> bool:
    """Return whether the event is to occur again, in a new row."""
    definition, at = desired.definition, _date_of_row(row, desired)
    if definition.triggers:
        is_another = row.armed or row.attempt > 0 or row.status != EventStatus.PENDING
        return _is_counted_write(row, desired) and is_another
    if not definition.rearm or desired.error:
        return False
    if not definition.is_scheduled:
        return desired.armed and not row.armed and row.status in (EventStatus.PROCESSED, EventStatus.EXPIRED)
    if at is None or not is_moved(row, at, desired.timezone) or later(at, definition.grace) < now:
        return False
    return occurs_again_at_new_date(row) or (
        row.status == EventStatus.PENDING and any(subscriber.has_begun(row) for subscriber in subscribers())
    )


def _may_revive(row: Event, at: datetime, desired: DesiredEvent, now: datetime) -> bool:
    """Return whether an expired event may occur at ``at``. The same day in another zone is new while it is ahead."""
    is_new = is_moved(row, at, desired.timezone) or (at != row.at and at > now)
    return is_new and later(at, desired.definition.grace) >= now


def apply_desired(row: Event, desired: DesiredEvent, now: datetime) -> None:
    """Set the columns of the row to what the entity declares now."""
    row.failed_evaluation, row.captured_in = desired.failed_evaluation, desired.captured_in
    definition, at = desired.definition, _date_of_row(row, desired)
    armed, counts = desired.armed, bool(definition.triggers) and _is_counted_write(row, desired)
    is_undone = bool(definition.triggers) and _is_undone(row, desired)
    if desired.change is not None and (counts or _is_own(row, desired)):
        row.changed_values = desired.changed_values
    if desired.watched is not NOT_WRITTEN:
        row.watched = desired.watched
    if definition.triggers:
        armed = (row.armed and not is_undone) or (counts and desired.armed)
    if counts or (row.status == EventStatus.PENDING and not definition.triggers):
        row.event_name, row.namespace = desired.name, desired.namespace
        if definition.compared_fields and not row.trigger:
            row.fired = []  # what was undone was not created either
        row.trigger = desired.write.value if desired.write else ""
    if is_undone:
        # A row with watched fields waits for their next change; a transition that is taken back never was.
        row.trigger, row.fired = "", [CREATED] if definition.transition is None else [CREATED, CANCELLED]
    if armed and not row.armed:
        row.caused_by, row.depth = cause_now()
        row.trace_context = current_trace_context()
        if row.status == EventStatus.PENDING and not definition.is_scheduled:
            at = now
    is_late = definition.is_scheduled and at is not None and later(at, definition.grace) < now
    if row.status == EventStatus.PENDING and is_late and armed and not row.armed:
        row.status, row.error = EventStatus.EXPIRED, "Its condition became true only after its grace period."
    if row.status == EventStatus.EXPIRED and at is not None and _may_revive(row, at, desired, now):
        # It has not occurred, and at its new date it still may.
        row.status, row.error = EventStatus.PENDING, ""
    # Nothing is overdue, so an offset past its grace period is a new subscription: it is skipped, as in ``reconcile``.
    is_not_due = (at, desired.timezone) == (row.at, row.timezone) and (row.wake_at is None or row.wake_at > now)
    became_armed, row.at, row.armed, row.timezone = armed and not row.armed, at, armed, desired.timezone
    rearm_future(row, now)
    if became_armed:
        held = held_back(row)
        if late := [milestone for milestone in too_late(row, definition, now) if milestone in held]:
            row.fired = [*row.fired, *late]
            row.error = skip_note(late, "recheck=True, and its condition became true only after its grace period")
    if is_not_due:
        row.fired = [*row.fired, *too_late(row, definition, now)]
    if desired.error and not desired.is_retryable:
        row.set_parked(desired.error, now)
    is_retrying = bool(row.attempt) and (bool(desired.error) or bool(definition.triggers))
    if row.attempt and not is_retrying:
        row.attempt, row.error = 0, ""
    retry_at = row.wake_at if row.lease is None else now + EVALUATION_RETRY.base_delay
    set_timer(row, definition, now, desired.origin)
    if is_retrying and row.status == EventStatus.PENDING:
        row.wake_at, row.lease = retry_at, None
    elif desired.error and row.status == EventStatus.PENDING:
        _retry_evaluation(row, desired.error, now)
