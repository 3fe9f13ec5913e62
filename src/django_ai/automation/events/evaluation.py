"""Evaluation: decide what a due event row does now.

``evaluate_all`` reads the entities again and calls the project's conditions and payload functions; no transaction is
open. The result is one ``Evaluation`` for each row: the columns to write and the milestones that fire. Only
``occurrence`` writes it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import connections

from ..conf import conf
from ..db.errors import own_failures
from ..db.writer import alias_of, from_writer
from ..exceptions import AutomationError, UnknownEventError
from ..queues.parking import parking_changes, reason_of
from ..values.json_text import storable
from ..values.retry import Retry
from ..values.text import trace_of
from .callbacks import CANCELLED, CREATED
from .changes import recorded_change
from .definitions import EventDefinition, EventTrigger
from .entities import load_entities
from .failed_evaluation import FailedEvaluation
from .models import CallbackExecution, Event, EventStatus
from .payload import payload_json
from .subscribers import subscribers
from .timing import (
    due_milestones,
    has_callback,
    held_back,
    is_moved,
    is_past_grace,
    next_wake,
    not_fired,
    occurs_again_at_new_date,
    plan_of,
    rearm_future,
    skip_note,
)
from .window_keys import windows_for


@dataclass(slots=True)
class Evaluation:
    """What one event row does now: the columns to write, and what subscribers do about it.

    ``replan``: its date, time zone or condition changed. ``withdrawn``: it was cancelled or expired. ``was_parked``: it
    stays parked, which was reported before. ``windows``: kind, name and key of each window that collects the event.
    ``executions``: the callbacks that its milestones start, not inserted yet.
    """

    event: Event
    definition: EventDefinition | None
    changes: dict[str, Any] = field(default_factory=dict)
    milestones: list[str] = field(default_factory=list)
    replan: bool = False
    withdrawn: bool = False
    entity_is_missing: bool = False
    has_no_timer: bool = False
    was_parked: bool = False
    windows: list[tuple[str, str, str]] = field(default_factory=list)
    failed_evaluation: FailedEvaluation | None = None
    executions: list[CallbackExecution] = field(default_factory=list)

    @property
    def position_columns(self) -> tuple[str, ...]:
        """The columns that get a new position, because a milestone fires that waits and mailboxes may be ordered by."""
        if "" in self.milestones:
            return ("position", "fired_position")
        return (
            ("fired_position",) if any(milestone not in (CREATED, CANCELLED) for milestone in self.milestones) else ()
        )


def evaluate_all(events: Sequence[Event], now: datetime) -> Iterator[Evaluation]:
    """Evaluate the events, without those that only have notifications left to deliver."""
    load_entities([event for event in events if not event.pending_notifications])
    for event in events:
        if not event.pending_notifications:
            with own_failures(connections[alias_of(Event)]) as is_ours:
                evaluation = _evaluate(event, now, is_ours)
            yield evaluation


@from_writer()
def _evaluate(event: Event, now: datetime, is_ours: Callable[[BaseException], bool]) -> Evaluation:
    """Decide what the event does now. Calls user code: name, namespace, condition, payload.

    ``is_ours``: returns whether an error is a failure of the automation database.
    """
    definition = event.definition
    evaluation = Evaluation(event, definition)
    deletion = event.trigger == EventTrigger.DELETE
    if event.status == EventStatus.CANCELLED:
        evaluation.milestones = [milestone for milestone in (CREATED, CANCELLED) if _has_new_callback(event, milestone)]
        return _finished(evaluation, now)
    try:
        event.check_known(declared=True)
    except UnknownEventError as error:
        return _parked(event, reason_of(event, error), now, awaiting_deploy=True)
    assert definition is not None
    if event.status == EventStatus.PARKED:  # awaiting a deploy that has happened
        event.status, event.error, event.parked_at = event.resumed_status, "", None
    if not (deletion or event.is_free) and (event.entity is None or event.snapshot_id is not None):
        evaluation.withdrawn = True
        event.wake_at = None
        if event.status == EventStatus.PENDING:
            event.status, event.error = EventStatus.CANCELLED, "Its entity was deleted."
            evaluation.entity_is_missing = True
        else:
            _skip(event, not_fired(event), "its entity was deleted")
        # An event that has occurred is not cancelled, only its later offsets are withdrawn.
        possible = (CREATED, CANCELLED) if evaluation.entity_is_missing else (CREATED,)
        evaluation.milestones = [milestone for milestone in possible if _has_new_callback(event, milestone)]
        return _finished(evaluation, now)
    if event.attempt:
        event.error = ""
    started = time.monotonic()
    try:
        # The condition of a deletion was evaluated when the entity was deleted.
        at, armed, timezone = (event.at, event.armed, event.timezone) if deletion else _current_state(event, definition)
        if (
            definition.rearm
            and definition.is_scheduled
            and at is not None
            and is_moved(event, at, timezone)
            and occurs_again_at_new_date(event)
        ):
            # The date was changed by a write that bypasses signals: the reconciliation inserts a row for the new date.
            _skip(event, not_fired(event), "its date moved, and the new date has its own event")
            evaluation.has_no_timer = True
            return _finished(evaluation, now)
        if (at, armed, timezone) != (event.at, event.armed, event.timezone):
            event.at, event.armed, event.timezone, evaluation.replan = at, armed, timezone, True
            rearm_future(event, now)
        if armed and not definition.is_scheduled and event.status == EventStatus.PENDING:
            evaluation.milestones = [""]
        evaluation.milestones += [
            milestone for milestone in due_milestones(event, now) if milestone not in evaluation.milestones
        ]
        if not armed and event.active_key is None and event.status == EventStatus.PENDING:
            # A newer row of the entity has the key, so this one cannot be armed again.
            _expire(evaluation, "Its condition was no longer true when it should have occurred.")
        elif not armed and is_past_grace(event, definition, now):
            _expire(evaluation)
        if "" in evaluation.milestones:
            if not event.is_free:
                event.payload = json.loads(payload_json(event, definition))
            evaluation.windows = windows_for(event)
            event.status, event.occurred_at = EventStatus.PROCESSED, now
            if event.at is None:
                event.at = now
            evaluation.milestones += [
                milestone for milestone in due_milestones(event, now) if milestone not in evaluation.milestones
            ]
    except Exception as error:
        if is_ours(error):
            raise  # not a fault of the event: the row is evaluated again after its lease expires
        return _failed(event, FailedEvaluation(error, time.monotonic() - started), now)
    if _has_new_callback(event, CREATED):
        evaluation.milestones.insert(0, CREATED)
    milestones = [milestone for milestone in evaluation.milestones if milestone not in (CREATED, CANCELLED)]
    event.pending_notifications = [
        milestone
        for milestone in milestones
        if (evaluation.windows and not milestone)
        or any(each.wants_notification(event, milestone) for each in subscribers())
    ]
    return _finished(evaluation, now)


def _current_state(event: Event, definition: EventDefinition) -> tuple[datetime | None, bool, str]:
    """Return the date of the event, whether its condition holds, and its time zone, from the entity as it is now."""
    if event.is_free:
        return event.at, True, ""
    entity = event.entity
    if event.status == EventStatus.PENDING:
        event.event_name, event.namespace = definition.name_for(entity), definition.namespace_of(entity)
    timezone = event.current_timezone()
    armed = definition.holds_for(entity) and _is_transition(event, definition)
    return event.current_date(timezone), armed, timezone


def _is_transition(event: Event, definition: EventDefinition) -> bool:
    """Return whether the recorded write was a transition. The save that has armed the event has evaluated that; one in
    which a function raised has not."""
    transition, stored = definition.transition, event.changed_values
    if event.armed or transition is None or stored is None or not stored.keys() >= set(transition.fields):
        return True
    change = recorded_change(event.entity_type, stored, created=event.trigger == EventTrigger.CREATE)
    return transition.holds(type(event.entity), change.before, change.after)


def _expire(
    evaluation: Evaluation, reason: str = "Its condition was not true at its date or within its grace period."
) -> None:
    event = evaluation.event
    if event.status == EventStatus.PENDING:
        evaluation.withdrawn = True
        event.status, event.error = EventStatus.EXPIRED, reason
    else:
        _skip(
            event,
            held_back(event),
            "recheck=True, and its condition was not true at that time or within its grace period",
        )


def _skip(event: Event, milestones: Iterable[str], reason: str) -> None:
    """Skip offsets of an event that has occurred, and record the reason in its ``error``."""
    if skipped := list(milestones):
        event.fired = [*event.fired, *skipped]
        event.error = skip_note(skipped, reason)


def _has_new_callback(event: Event, milestone: str) -> bool:
    return milestone not in event.fired and has_callback(event, milestone)


OCCURRENCE_COLUMNS = (
    "event_name",
    "namespace",
    "status",
    "at",
    "armed",
    "fired",
    "payload",
    "occurred_at",
    "error",
    "pending_notifications",
    "parked_at",
    "planned_for",
)


def _finished(evaluation: Evaluation, now: datetime) -> Evaluation:
    """Return the evaluation with the changes to write."""
    event = evaluation.event
    event.fired = [*event.fired, *(milestone for milestone in evaluation.milestones if milestone)]
    keeps_lease = bool(event.pending_notifications)
    wake_at = None
    if evaluation.definition is not None and not evaluation.has_no_timer:
        wake_at = next_wake(event, evaluation.definition, now)
        event.planned_for = plan_of(event.declared_as)
    evaluation.changes = {name: getattr(event, name) for name in OCCURRENCE_COLUMNS} | {
        "attempt": 0,
        "wake_at": now + conf().LEASE if keeps_lease else wake_at,
        "lease": event.lease if keeps_lease else None,
    }
    if evaluation.replan:
        evaluation.changes["timezone"] = event.timezone
    offsets = [milestone for milestone in evaluation.milestones if milestone not in ("", CREATED, CANCELLED)]
    if offsets or (evaluation.position_columns and event.milestone_positions):
        # The new milestones get the position of this write, and earlier ones keep theirs.
        kept = {milestone: event.position_of(milestone) for milestone in event.milestone_positions}
        evaluation.changes["milestone_positions"] = kept | dict.fromkeys(offsets)
    if evaluation.entity_is_missing:
        # Otherwise unchanged: a save may have given the key to a newer row since this one was read.
        evaluation.changes["active_key"] = event.active_key = None
    return evaluation


EVALUATION_RETRY = Retry(max_attempts=5)
"""The retry policy for a condition or payload that raises, before its event is parked."""


def evaluation_retry_delay(error: Exception, attempt: int) -> timedelta | None:
    """Return how long after the failed ``attempt`` an evaluation is repeated; None: the row is parked. An error of this
    package is not retried, unless another attempt may succeed."""
    if isinstance(error, AutomationError) and not error.is_retryable:
        return None
    return EVALUATION_RETRY.delay(attempt)


def _failed(event: Event, failed_evaluation: FailedEvaluation, now: datetime) -> Evaluation:
    """Retry after a backoff, or park the event."""
    error = failed_evaluation.error
    delay = evaluation_retry_delay(error, event.attempt + 1)
    if delay is None:
        return replace(_parked(event, trace_of(error), now, awaiting_deploy=False), failed_evaluation=failed_evaluation)
    _discard_changes(event)
    changes = {"attempt": event.attempt + 1, "error": storable(trace_of(error)), "wake_at": now + delay, "lease": None}
    return Evaluation(event, None, changes, failed_evaluation=failed_evaluation)


def _parked(event: Event, reason: str, now: datetime, *, awaiting_deploy: bool) -> Evaluation:
    _discard_changes(event)
    was_parked = awaiting_deploy and event.parked_at is not None
    return Evaluation(
        event,
        None,
        {**parking_changes(event, reason, now, awaiting_deploy=awaiting_deploy), "attempt": 0},
        was_parked=was_parked,
    )


def _discard_changes(event: Event) -> None:
    """Restore the fields that a failed evaluation has set."""
    names = ["event_name", "namespace", "at", "timezone", "armed", "status", "payload", "occurred_at", "fired"]
    with contextlib.suppress(Event.DoesNotExist):  # the fenced write will fail, too
        event.refresh_from_db(fields=names)
