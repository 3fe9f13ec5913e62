"""Evaluation: decide what a due event row does now.

``evaluate_all`` reads the entities again and calls the project's conditions and payload functions; no transaction is
open. The result is one ``Evaluation`` for each row: the columns to write and the milestones that fire. Only
``occurrence`` writes it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db import connections

from ..conf import conf
from ..db.errors import own_failures
from ..db.writer import alias_of, from_writer
from ..exceptions import AutomationError, DefinitionError, UnknownEventError
from ..queues.parking import parking_changes, reason_of
from ..values.json_text import encode, storable
from ..values.retry import Retry
from ..values.text import trace_of
from .callbacks import CANCELLED, CREATED
from .definitions import EventDefinition, EventTrigger
from .entities import load_entities
from .failed_evaluation import FailedEvaluation
from .models import Event, EventStatus
from .subscribers import subscribers
from .timing import (
    due_milestones,
    hears,
    held_back,
    is_given_up,
    moves_again,
    next_wake,
    not_fired,
    plan_of,
    rearm_future,
    skip_note,
)


@dataclass(slots=True)
class Evaluation:
    """What one event row does now."""

    event: Event
    definition: EventDefinition | None
    changes: dict[str, Any] = field(default_factory=dict)
    milestones: list[str] = field(default_factory=list)
    replan: bool = False
    withdrawn: bool = False
    gone: bool = False
    rests: bool = False
    known: bool = False
    failed_evaluation: FailedEvaluation | None = None

    @property
    def arrives(self) -> tuple[str, ...]:
        """The columns that take a new position: something comes for those who wait."""
        if "" in self.milestones:
            return ("position", "fired_position")
        return (
            ("fired_position",) if any(milestone not in (CREATED, CANCELLED) for milestone in self.milestones) else ()
        )


def evaluate_all(events: Sequence[Event], now: datetime) -> Iterator[Evaluation]:
    load_entities([event for event in events if not event.pending_notifications])
    for event in events:
        if not event.pending_notifications:
            with own_failures(connections[alias_of(Event)]) as is_ours:
                reading = _evaluate(event, now, is_ours)
            yield reading


@from_writer()
def _evaluate(event: Event, now: datetime, is_ours: Callable[[BaseException], bool]) -> Evaluation:
    """Decide what the event does now. Runs user code: its condition and its payload. ``is_ours``: says whether an error
    is that of the automations' database."""
    definition = event.definition
    reading = Evaluation(event, definition)
    deletion = event.trigger == EventTrigger.DELETE
    if event.status == EventStatus.CANCELLED:
        reading.milestones = [milestone for milestone in (CREATED, CANCELLED) if _hears_now(event, milestone)]
        return _settled(reading, now)
    try:
        event.check_known(declared=True)
    except UnknownEventError as error:
        return _parked(event, reason_of(event, error), now, awaiting_deploy=True)
    assert definition is not None
    if event.status == EventStatus.PARKED:  # for code, which is here now
        event.status, event.error, event.parked_at = event.resumed_status, "", None
    if (event.entity is None or event.snapshot_id is not None) and not deletion:
        reading.withdrawn = True
        event.wake_at = None
        if event.status == EventStatus.PENDING:
            event.status, event.error = EventStatus.CANCELLED, "Its entity is gone."
            reading.gone = True
        else:
            _skip(event, not_fired(event), "its entity is gone")
        # One that has occurred is not cancelled, though its later offsets are withdrawn.
        moments = (CREATED, CANCELLED) if reading.gone else (CREATED,)
        reading.milestones = [milestone for milestone in moments if _hears_now(event, milestone)]
        return _settled(reading, now)
    if event.attempt:
        event.error = ""
    started = time.monotonic()
    try:
        # A deletion is final: its condition was asked then.
        at, armed = (event.at, event.armed) if deletion else _ask(event, definition)
        if definition.rearm and definition.is_scheduled and at not in (None, event.at) and moves_again(event):
            # Its date moved behind Django's back: the reconciliation gives the new one a row of its own.
            _skip(event, not_fired(event), "its date moved, and the new one has an event of its own")
            reading.rests = True
            return _settled(reading, now)
        if (at, armed) != (event.at, event.armed):
            event.at, event.armed, reading.replan = at, armed, True
            rearm_future(event, now)
        if armed and not definition.is_scheduled and event.status == EventStatus.PENDING:
            reading.milestones = [""]
        reading.milestones += [
            milestone for milestone in due_milestones(event, now) if milestone not in reading.milestones
        ]
        if not armed and event.active_key is None and event.status == EventStatus.PENDING:
            # A newer row speaks for the entity, and this one cannot be armed again.
            _give_up(reading, "Its condition was no longer true when it should have occurred.")
        elif not armed and is_given_up(event, definition, now):
            _give_up(reading)
        if "" in reading.milestones:
            event.payload = json.loads(_payload_text(event, definition))
            event.status, event.occurred_at = EventStatus.PROCESSED, now
            if event.at is None:
                event.at = now
            reading.milestones += [
                milestone for milestone in due_milestones(event, now) if milestone not in reading.milestones
            ]
    except Exception as error:
        if is_ours(error):
            raise  # nobody's fault: the row is looked at again when its lease runs out
        return _failed(event, FailedEvaluation(error, time.monotonic() - started), now)
    if _hears_now(event, CREATED):
        reading.milestones.insert(0, CREATED)
    milestones = [milestone for milestone in reading.milestones if milestone not in (CREATED, CANCELLED)]
    event.pending_notifications = [
        milestone
        for milestone in milestones
        if any(each.wants_notification(event, milestone) for each in subscribers())
    ]
    return _settled(reading, now)


def _ask(event: Event, definition: EventDefinition) -> tuple[datetime | None, bool]:
    """Return the event's date and verdict, from the entity as it is now."""
    entity = event.entity
    if event.status == EventStatus.PENDING:
        event.event_name, event.namespace = definition.name_for(entity), definition.namespace_of(entity)
    return event.current_date(), definition.holds_for(entity)


def _give_up(
    reading: Evaluation, reason: str = "Its condition was not true at its date, nor within its grace."
) -> None:
    event = reading.event
    if event.status == EventStatus.PENDING:
        reading.withdrawn = True
        event.status, event.error = EventStatus.EXPIRED, reason
    else:
        _skip(event, held_back(event), "recheck=True, and its condition was not true then, nor within its grace")


def _skip(event: Event, milestones: Iterable[str], reason: str) -> None:
    """Drop offsets of an event that has occurred, and say so in its ``error``."""
    if skipped := list(milestones):
        event.fired = [*event.fired, *skipped]
        event.error = skip_note(skipped, reason)


def _hears_now(event: Event, moment: str) -> bool:
    return moment not in event.fired and hears(event, moment)


CHANGED = (
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


def _settled(reading: Evaluation, now: datetime) -> Evaluation:
    event = reading.event
    event.fired = [*event.fired, *(milestone for milestone in reading.milestones if milestone)]
    keeps_lease = bool(event.pending_notifications)
    next_look = None
    if reading.definition is not None and not reading.rests:
        next_look = next_wake(event, reading.definition, now)
        event.planned_for = plan_of(event.declared_as)
    reading.changes = {name: getattr(event, name) for name in CHANGED} | {
        "attempt": 0,
        "wake_at": now + conf().LEASE if keeps_lease else next_look,
        "lease": event.lease if keeps_lease else None,
    }
    offsets = [milestone for milestone in reading.milestones if milestone not in ("", CREATED, CANCELLED)]
    if offsets or (reading.arrives and event.milestone_positions):
        # The latest beats have the position that this write takes, and those before them keep theirs.
        kept = {milestone: event.position_of(milestone) for milestone in event.milestone_positions}
        reading.changes["milestone_positions"] = kept | dict.fromkeys(offsets)
    if reading.gone:
        # Otherwise left alone: a save may have given the key to a newer row since this one was read.
        reading.changes["active_key"] = event.active_key = None
    return reading


RETRY = Retry(max_attempts=5)
"""How often a condition or payload that raises is asked again before its event is parked."""


def _failed(event: Event, failed_evaluation: FailedEvaluation, now: datetime) -> Evaluation:
    """Ask again after a backoff, or park the event. What this package refuses is refused again: that parks at once."""
    error = failed_evaluation.error
    delay = None if isinstance(error, AutomationError) else RETRY.delay(event.attempt + 1)
    if delay is None:
        return replace(_parked(event, trace_of(error), now, awaiting_deploy=False), failed_evaluation=failed_evaluation)
    _as_stored(event)
    changes = {"attempt": event.attempt + 1, "error": storable(trace_of(error)), "wake_at": now + delay, "lease": None}
    return Evaluation(event, None, changes, failed_evaluation=failed_evaluation)


def _parked(event: Event, reason: str, now: datetime, *, awaiting_deploy: bool) -> Evaluation:
    _as_stored(event)
    known = awaiting_deploy and event.parked_at is not None
    return Evaluation(
        event, None, {**parking_changes(event, reason, now, awaiting_deploy=awaiting_deploy), "attempt": 0}, known=known
    )


def _as_stored(event: Event) -> None:
    """Take back what a reading that failed has set."""
    names = ["event_name", "namespace", "at", "armed", "status", "payload", "occurred_at", "fired"]
    with contextlib.suppress(Event.DoesNotExist):  # then the write is refused, as every late one
        event.refresh_from_db(fields=names)


def _payload_text(event: Event, definition: EventDefinition) -> str:
    """Return what those who wait for the event are given, as JSON."""
    payload: dict[str, Any] = {
        "event_id": event.pk,
        "event_name": event.event_name,
        "entity_id": event.entity_id,
        "event_at": event.at.isoformat() if event.at else None,
    }
    if event.trigger == EventTrigger.DELETE:
        payload |= event.payload or {}  # asked for at the deletion
    else:
        payload |= extra_payload(event, definition)
    return encode(payload, f"The payload of {definition!r}")


@from_writer()
def extra_payload(event: Event, definition: EventDefinition) -> dict[str, Any]:
    """Return what the definition's payload function adds. Raises what it raises, ``DefinitionError`` if that is no
    dict, and ``NotStorableError``."""
    if definition.payload is None:
        return {}
    takes_event = "event" in inspect.signature(definition.payload).parameters
    extra = definition.payload(event if takes_event else event.entity)
    if not isinstance(extra, dict):
        raise DefinitionError(
            f"The payload function of {definition!r} returned {extra!r}; it must return a dict of values."
        )
    found: dict[str, Any] = json.loads(encode(extra, f"The payload of {definition!r}"))
    return found
