"""Occurrence: what happens when an event row is due, in one short fenced transaction, once.

``perform_events`` reads the entities afresh and asks conditions and payloads (user code: no transaction is open), then
writes for each event what its reading says, and fans out: callback executions, and whatever the listeners make. What
lost its lease meanwhile (the entity was saved again, the event cancelled) is left out. After the commit those who wait
for the event are told; the row stays due until they were, so a crash in between only repeats the telling.

``CommitBatch`` is the fast path: the process that saved the entities does this itself right after its commit, for all
events of the commit together.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
from django.utils import timezone

from ..conf import conf
from ..exceptions import AutomationError, DefinitionError, LeaseLostError, UnknownEventError
from ..queues import positions
from ..queues.attempt import trace_of
from ..queues.clock import Clock
from ..queues.database import is_database_failure
from ..queues.executor import ring_after_commit
from ..queues.heartbeat import keep_lease_for
from ..queues.jsontext import encode, storable
from ..queues.lease import advance, alias_of, disturb, insert_ignoring, new_token
from ..queues.parking import because, parked
from ..queues.retry import Retry
from ..queues.signals import row_parked
from ..queues.writer import from_writer
from .callbacks import CANCELLED, CREATED, callbacks_of
from .claims import count
from .definitions import EventDefinition, EventTrigger
from .listeners import News, listeners
from .models import CallbackExecution, Event, EventStatus, RoutingShape, load_entities, new_execution
from .timing import (
    due_beats,
    hears,
    held_back,
    is_given_up,
    moves_again,
    next_wake,
    plan_of,
    skip_note,
    unfire,
    unfired,
)


class CommitBatch:
    """The events of one connection that are due at its commit: the hook that makes them occur.

    Registered as often as something is added, it runs once a commit. What a rolled back transaction has added is not
    found when it runs: it does no harm.
    """

    SIZE = 500

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.token = new_token()
        self.__qualname__ = type(self).__name__  # Django names a hook that fails
        self._pks: list[int] = []

    @classmethod
    def of(cls, alias: str) -> CommitBatch:
        """Return the batch of this thread's connection to ``alias``."""
        connection = connections[alias]
        batch = _batches.get(connection)
        if batch is None:
            batch = _batches[connection] = cls(alias)
        return batch

    @property
    def is_of_this_transaction(self) -> bool:
        """Whether the open transaction has added something to it. Hooks of others may save in transactions of their own
        between a commit and this hook."""
        return any(hook is self for _, hook, *_ in connections[self.alias].run_on_commit)

    def add(self, events: Sequence[Event]) -> None:
        self._pks += [event.pk for event in events]
        transaction.on_commit(self, using=self.alias, robust=True)

    def make_occur(self) -> int:
        """Do now, in a transaction that never commits (a ``TestCase``), what is done after a commit; say for how many.

        Not for those that are remembered: what a test class has set up is there again for each of its tests.
        """
        rows = Event.objects.filter(lease=self.token, wake_at__isnull=False).order_by("pk")
        self._pks = list(rows.values_list("pk", flat=True))
        found = len(self._pks)
        self()
        return found

    def __call__(self) -> None:
        pks, self._pks = list(dict.fromkeys(self._pks)), []
        for start in range(0, len(pks), self.SIZE):
            chunk = pks[start : start + self.SIZE]
            found = {row.pk: row for row in Event.objects.filter(pk__in=chunk, lease=self.token)}
            perform_events([found[pk] for pk in chunk if pk in found], timezone.now)


_batches: WeakKeyDictionary[BaseDatabaseWrapper, CommitBatch] = WeakKeyDictionary()


@dataclass(slots=True)
class Reading:
    """What one event row does now."""

    event: Event
    definition: EventDefinition | None
    changes: dict[str, Any] = field(default_factory=dict)
    beats: list[str] = field(default_factory=list)
    replan: bool = False
    withdrawn: bool = False
    gone: bool = False
    rests: bool = False
    known: bool = False

    @property
    def arrives(self) -> tuple[str, ...]:
        """The columns that take a new position: something comes for those who wait."""
        if "" in self.beats:
            return ("position", "fired_position")
        return ("fired_position",) if any(beat not in (CREATED, CANCELLED) for beat in self.beats) else ()


def perform_events(events: Sequence[Event], clock: Clock) -> None:
    """Do what the events are due for. Their leases must be in the caller's hand."""
    keep_lease_for(conf().STEP_TIMEOUT)
    now = clock()
    # Before they are read: reading decides what there is to tell now, and this is what somebody left untold.
    untold = [News(event, beat) for event in events if event.telling for beat in event.untold]
    readings = list(_read_all(events, now))
    with transaction.atomic(using=alias_of(Event)):
        _allot(readings)
        kept = [reading for reading in readings if _write(reading)]
        _fan_out(kept, now)
    for reading in kept:
        if reading.event.status == EventStatus.PARKED and not reading.known:
            row_parked.send_robust(Event, row=reading.event, reason=reading.event.error)
    _tell([News(reading.event, beat) for reading in kept for beat in reading.event.untold], clock)
    _tell(untold, clock)
    ring_after_commit(alias_of(Event))


def _read_all(events: Sequence[Event], now: datetime) -> Iterator[Reading]:
    load_entities([event for event in events if not event.telling])
    for event in events:
        if not event.telling:
            yield _read(event, now)


@from_writer()
def _read(event: Event, now: datetime) -> Reading:
    """Decide what the event does now. Runs user code: its condition and its payload."""
    definition = event.definition
    reading = Reading(event, definition)
    deletion = event.trigger == EventTrigger.DELETE
    if event.status == EventStatus.CANCELLED:
        reading.beats = [beat for beat in (CREATED, CANCELLED) if _hears_now(event, beat)]
        return _settled(reading, now)
    try:
        event.check_known(declared=True)
    except UnknownEventError as error:
        return _parked(event, because(event, error), now, for_code=True)
    assert definition is not None
    if event.status == EventStatus.PARKED:  # for code, which is here now
        event.status, event.error, event.parked_at = event.unparked, "", None
    if (event.entity is None or event.snapshot is not None) and not deletion:
        reading.withdrawn = True
        event.wake_at = None
        if event.status == EventStatus.PENDING:
            event.status, event.error = EventStatus.CANCELLED, "Its entity is gone."
            reading.gone = True
        else:
            _skip(event, unfired(event), "its entity is gone")
        # One that has occurred is not cancelled, though its later offsets are withdrawn.
        moments = (CREATED, CANCELLED) if reading.gone else (CREATED,)
        reading.beats = [beat for beat in moments if _hears_now(event, beat)]
        return _settled(reading, now)
    if event.attempt:
        event.error = ""
    try:
        # A deletion is final: its condition was asked then.
        at, armed = (event.at, event.armed) if deletion else _ask(event, definition)
        if definition.rearm and definition.is_scheduled and at not in (None, event.at) and moves_again(event):
            # Its date moved behind Django's back: the reconciliation gives the new one a row of its own.
            _skip(event, unfired(event), "its date moved, and the new one has an event of its own")
            reading.rests = True
            return _settled(reading, now)
        if (at, armed) != (event.at, event.armed):
            event.at, event.armed, reading.replan = at, armed, True
            unfire(event, now)
        if armed and not definition.is_scheduled and event.status == EventStatus.PENDING:
            reading.beats = [""]
        reading.beats += [beat for beat in due_beats(event, now) if beat not in reading.beats]
        if not armed and event.active_key is None and event.status == EventStatus.PENDING:
            # A newer row speaks for the entity, and this one cannot be armed again.
            _give_up(reading, "Its condition was no longer true when it should have occurred.")
        elif not armed and is_given_up(event, definition, now):
            _give_up(reading)
        if "" in reading.beats:
            event.payload = json.loads(_payload_text(event, definition))
            event.status, event.occurred_at = EventStatus.PROCESSED, now
            if event.at is None:
                event.at = now
            reading.beats += [beat for beat in due_beats(event, now) if beat not in reading.beats]
    except Exception as error:
        if is_database_failure(error, connections[alias_of(Event)]):
            raise  # nobody's fault: the row is looked at again when its lease runs out
        return _failed(event, error, now)
    if _hears_now(event, CREATED):
        reading.beats.insert(0, CREATED)
    beats = [beat for beat in reading.beats if beat not in (CREATED, CANCELLED)]
    event.untold = [beat for beat in beats if any(each.wants_telling(event, beat) for each in listeners())]
    event.telling = bool(event.untold)
    return _settled(reading, now)


def _ask(event: Event, definition: EventDefinition) -> tuple[datetime | None, bool]:
    """Return the event's date and verdict, from the entity as it is now."""
    entity = event.entity
    if event.status == EventStatus.PENDING:
        event.event_name, event.namespace = definition.name_for(entity), definition.namespace_of(entity)
    return event.current_date(), definition.holds_for(entity)


def _give_up(reading: Reading, reason: str = "Its condition was not true at its date, nor within its grace.") -> None:
    event = reading.event
    if event.status == EventStatus.PENDING:
        reading.withdrawn = True
        event.status, event.error = EventStatus.EXPIRED, reason
    else:
        _skip(event, held_back(event), "recheck=True, and its condition was not true then, nor within its grace")


def _skip(event: Event, beats: Iterable[str], reason: str) -> None:
    """Drop offsets of an event that has occurred, and say so in its ``error``."""
    if skipped := list(beats):
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
    "telling",
    "untold",
    "parked_at",
    "planned_for",
)


def _settled(reading: Reading, now: datetime) -> Reading:
    event = reading.event
    event.fired = [*event.fired, *(beat for beat in reading.beats if beat)]
    keeps_lease = event.telling
    next_look = None
    if reading.definition is not None and not reading.rests:
        next_look = next_wake(event, reading.definition, now)
        event.planned_for = plan_of(event.declared_as)
    reading.changes = {name: getattr(event, name) for name in CHANGED} | {
        "attempt": 0,
        "wake_at": now + conf().LEASE if keeps_lease else next_look,
        "lease": event.lease if keeps_lease else None,
    }
    offsets = [beat for beat in reading.beats if beat not in ("", CREATED, CANCELLED)]
    if offsets or (reading.arrives and event.beat_positions):
        # The latest beats have the position that this write takes, and those before them keep theirs.
        kept = {beat: event.position_of(beat) for beat in event.beat_positions}
        reading.changes["beat_positions"] = kept | dict.fromkeys(offsets)
    if reading.gone:
        # Otherwise left alone: a save may have given the key to a newer row since this one was read.
        reading.changes["active_key"] = event.active_key = None
    return reading


RETRY = Retry(max_attempts=5)
"""How often a condition or payload that raises is asked again before its event is parked."""


def _failed(event: Event, error: Exception, now: datetime) -> Reading:
    """Ask again after a backoff, or park the event. What this package refuses is refused again: that parks at once."""
    delay = None if isinstance(error, AutomationError) else RETRY.delay(event.attempt + 1)
    if delay is None:
        return _parked(event, trace_of(error), now, for_code=False)
    _as_stored(event)
    changes = {"attempt": event.attempt + 1, "error": storable(trace_of(error)), "wake_at": now + delay, "lease": None}
    return Reading(event, None, changes)


def _parked(event: Event, reason: str, now: datetime, *, for_code: bool) -> Reading:
    _as_stored(event)
    known = for_code and event.parked_at is not None
    return Reading(event, None, {**parked(event, reason, now, for_code=for_code), "attempt": 0}, known=known)


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


def _allot(readings: Sequence[Reading]) -> None:
    """Take the positions of what arrives now: in one statement, or none where each write takes its own."""
    connection = connections[alias_of(Event)]
    arriving = [reading for reading in readings if reading.arrives]
    if not arriving:
        return
    if positions.is_folded(connection):
        positions.note_arrivals(connection)
        return
    for reading, position in zip(arriving, positions.allot(len(arriving)), strict=True):
        reading.changes |= dict.fromkeys(reading.arrives, position)


def _write(reading: Reading) -> bool:
    arrives = reading.arrives if positions.is_folded(connections[alias_of(Event)]) else ()
    try:
        advance(reading.event, reading.changes, arrives=arrives)
    except LeaseLostError:
        return False
    return True


def _fan_out(readings: Sequence[Reading], now: datetime) -> None:
    executions = [
        new_execution(reading.event, callback, beat, now)
        for reading in readings
        for beat in reading.beats
        for callback in callbacks_of(reading.event.event_name, reading.event.namespace)
        if callback.beat == beat
    ]
    insert_ignoring(CallbackExecution, executions)
    replanned = [reading.event for reading in readings if reading.replan and not reading.withdrawn]
    occurred = [reading.event for reading in readings if "" in reading.beats]
    withdrawn = [reading.event for reading in readings if reading.withdrawn]
    for listener in listeners():
        if replanned:
            listener.plan(replanned, now, fresh=False)
        if occurred:
            listener.occurred(occurred, now)
        if withdrawn:
            listener.withdrawn(withdrawn, now)


def _tell(news: Sequence[News], clock: Clock) -> None:
    """Tell those who wait, then let the rows go. What fired is committed: whoever begins to wait now sees it."""
    if not news:
        return
    now = clock()
    shapes = RoutingShape.of([each.event for each in news])
    count([each.event for each in news if each.beat == ""], shapes)
    for listener in listeners():
        listener.tell(news, shapes, now)
    by_wake: dict[datetime | None, list[Event]] = {}
    for event in {each.event.pk: each.event for each in news}.values():
        definition = event.definition
        event.telling, event.untold = False, []
        by_wake.setdefault(next_wake(event, definition, now) if definition else None, []).append(event)
    for wake_at, group in by_wake.items():
        # Fenced on the lease alone: whoever changed a row since has cleared it.
        Event.objects.filter(pk__in=[event.pk for event in group], lease=group[0].lease, telling=True).update(
            telling=False, untold=[], wake_at=wake_at, lease=None
        )


def cancel_events(events: QuerySet[Event, Event], now: datetime) -> int:
    """Cancel those of ``events`` that are pending; say how many."""
    with transaction.atomic(using=alias_of(Event)):
        rows = list(events.select_for_update().filter(status__in=[EventStatus.PENDING, EventStatus.PARKED]))
        for row in rows:
            row.status = EventStatus.CANCELLED
            audible = hears(row, CANCELLED)
            disturb(Event.objects.filter(pk=row.pk), status=EventStatus.CANCELLED, wake_at=now if audible else None)
        if rows:
            for listener in listeners():
                listener.withdrawn(rows, now)
            ring_after_commit(alias_of(Event))
    return len(rows)
