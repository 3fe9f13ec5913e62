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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from ..queues.database import told_apart
from ..queues.executor import ring_after_commit
from ..queues.heartbeat import is_working, keep_lease_for
from ..queues.jsontext import encode, storable
from ..queues.lease import advance, advance_together, alias_of, claim_these, disturb, insert_ignoring, unlocked
from ..queues.models import Wakeable
from ..queues.parking import because, parked
from ..queues.retry import Retry
from ..queues.session import kept_session
from ..queues.signals import attempt_finished, row_parked
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

    It claims them like a worker, all of one commit at once, and leaves what somebody else has or is about to change.
    What a rolled back transaction has added is due no more, or anybody's business: it does no harm.
    """

    SIZE = 500

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._due: dict[int, datetime] = {}

    @classmethod
    def of(cls, alias: str) -> CommitBatch:
        """Return the batch of this thread's connection to ``alias``."""
        connection = connections[alias]
        batch = _batches.get(connection)
        if batch is None:
            batch = _batches[connection] = cls(alias)
        return batch

    def has(self, event: Event) -> bool:
        """Return whether the open transaction makes ``event`` occur. What a savepoint has taken back does not count."""
        if event.pk not in self._due:
            return False  # most are not, and a long transaction has many hooks
        hooks = (hook for _, hook, *_ in reversed(connections[self.alias].run_on_commit))
        return any(isinstance(hook, _Added) and hook.batch is self and event.pk in hook.pks for hook in hooks)

    def add(self, events: Sequence[Event]) -> None:
        """Make ``events``, which the open transaction has made due, occur after its commit."""
        self._due |= {event.pk: event.wake_at for event in events if event.wake_at is not None}
        transaction.on_commit(_Added(self, frozenset(event.pk for event in events)), using=self.alias, robust=True)

    def __call__(self) -> None:
        due, self._due = self._due, {}
        pks = list(due)
        for start in range(0, len(pks), self.SIZE):
            chunk = pks[start : start + self.SIZE]
            # Not before the save's own moment: the clock may have been set back since.
            now = max(timezone.now(), *(due[pk] for pk in chunk))
            rows = {row.pk: row for row in claim_these(Event, chunk, now)}
            if len(rows) < len(chunk):
                ring_after_commit(self.alias, Event)  # for what is somebody else's, should he roll back
            if rows:
                perform_events([rows[pk] for pk in chunk if pk in rows], timezone.now)


class _Added:
    """What one save adds to its connection's batch. The first of a commit that is called makes all of them occur."""

    def __init__(self, batch: CommitBatch, pks: frozenset[int]) -> None:
        self.batch, self.pks = batch, pks
        self.__qualname__ = CommitBatch.__name__  # Django names a hook that fails

    def __call__(self) -> None:
        self.batch()


_batches: WeakKeyDictionary[BaseDatabaseWrapper, CommitBatch] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a function of the project raised that a row asked, and after how many seconds. ``tell`` says so, to those
    who hear of attempts: that is what it was."""

    error: Exception
    seconds: float

    def tell(self, row: Wakeable) -> None:
        attempt_finished.send_robust(type(row), row=row, error=self.error, seconds=self.seconds)


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
    trouble: Trouble | None = None

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
    with kept_session(connections[alias_of(Event)], is_ours=is_working()):
        readings = list(_read_all(events, now))
    kept = _occur(readings, now)
    for reading in kept:
        if reading.trouble is not None:
            reading.trouble.tell(reading.event)
        if reading.event.status == EventStatus.PARKED and not reading.known:
            row_parked.send_robust(Event, row=reading.event, reason=reading.event.error)
    _tell([News(reading.event, beat) for reading in kept for beat in reading.event.untold], clock)
    _tell(untold, clock)


def _occur(readings: Sequence[Reading], now: datetime) -> list[Reading]:
    """Write what was read, all in one transaction, and return of which the lease was still ours.

    Who saves several entities locks their events in his order, so nothing is waited for with locks in hand: what
    somebody has locked is written afterwards, by itself.
    """
    free, busy = list(readings), []
    with transaction.atomic(using=alias_of(Event)):
        if len(free) > 1 and connections[alias_of(Event)].features.has_select_for_update:
            rows = Event.objects.filter(pk__in=[reading.event.pk for reading in readings])
            mine = set(unlocked(rows).order_by().values_list("pk", flat=True))
            free = [reading for reading in readings if reading.event.pk in mine]
            busy = [reading for reading in readings if reading.event.pk not in mine]
        kept = _write(free)
        _fan_out(kept, now)
        _ring_for((reading.changes["wake_at"] for reading in kept), now)
    for reading in busy:
        kept += _occur([reading], now)
    return kept


def _read_all(events: Sequence[Event], now: datetime) -> Iterator[Reading]:
    load_entities([event for event in events if not event.telling])
    for event in events:
        if not event.telling:
            with told_apart(connections[alias_of(Event)]) as is_ours:
                reading = _read(event, now, is_ours)
            yield reading


@from_writer()
def _read(event: Event, now: datetime, is_ours: Callable[[BaseException], bool]) -> Reading:
    """Decide what the event does now. Runs user code: its condition and its payload. ``is_ours``: says whether an error
    is that of the automations' database."""
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
    if (event.entity is None or event.snapshot_id is not None) and not deletion:
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
    started = time.monotonic()
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
        if is_ours(error):
            raise  # nobody's fault: the row is looked at again when its lease runs out
        return _failed(event, Trouble(error, time.monotonic() - started), now)
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


def _failed(event: Event, trouble: Trouble, now: datetime) -> Reading:
    """Ask again after a backoff, or park the event. What this package refuses is refused again: that parks at once."""
    error = trouble.error
    delay = None if isinstance(error, AutomationError) else RETRY.delay(event.attempt + 1)
    if delay is None:
        return replace(_parked(event, trace_of(error), now, for_code=False), trouble=trouble)
    _as_stored(event)
    changes = {"attempt": event.attempt + 1, "error": storable(trace_of(error)), "wake_at": now + delay, "lease": None}
    return Reading(event, None, changes, trouble=trouble)


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


def _write(readings: Sequence[Reading]) -> list[Reading]:
    """Write what was read, and return of which the lease was still ours. What arrives takes its position."""
    connection = connections[alias_of(Event)]
    if len(readings) == 1 and positions.is_folded(connection):
        return _write_alone(readings[0], connection)
    arriving = [reading for reading in readings if reading.arrives]
    if arriving:
        for reading, position in zip(arriving, positions.allot(len(arriving)), strict=True):
            reading.changes |= dict.fromkeys(reading.arrives, position)
    kept = advance_together([(reading.event, reading.changes) for reading in readings]) if readings else set()
    return [reading for reading in readings if reading.event.pk in kept]


def _write_alone(reading: Reading, connection: BaseDatabaseWrapper) -> list[Reading]:
    """Write one reading together with its position, in one statement."""
    if reading.arrives:
        positions.note_arrivals(connection)
    try:
        advance(reading.event, reading.changes, arrives=reading.arrives)
    except LeaseLostError:
        return []
    return [reading]


def _fan_out(readings: Sequence[Reading], now: datetime) -> None:
    executions = [
        new_execution(reading.event, callback, beat, now)
        for reading in readings
        for beat in reading.beats
        for callback in callbacks_of(reading.event.event_name, reading.event.namespace)
        if callback.beat == beat
    ]
    if insert_ignoring(CallbackExecution, executions):
        ring_after_commit(alias_of(CallbackExecution), CallbackExecution)
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


def _ring_for(wakes: Iterable[datetime | None], now: datetime) -> None:
    """Ring for events that are due again at once."""
    if any(wake_at is not None and wake_at <= now for wake_at in wakes):
        ring_after_commit(alias_of(Event), Event)


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
        _let_go(group, wake_at)
    _ring_for(by_wake, now)


def _let_go(events: Sequence[Event], wake_at: datetime | None) -> None:
    """Give back events that were told, in one statement, or one by one where somebody has locked some of them: he may
    be waiting for the others."""
    # Fenced on the lease alone: whoever changed a row since has cleared it.
    rows = Event.objects.filter(pk__in=[event.pk for event in events], lease=events[0].lease, telling=True)
    told: dict[str, Any] = {"telling": False, "untold": [], "wake_at": wake_at, "lease": None}
    if len(events) == 1 or not connections[alias_of(Event)].features.has_select_for_update:
        rows.update(**told)
        return
    with transaction.atomic(using=alias_of(Event)):
        free = list(unlocked(rows).order_by().values_list("pk", flat=True))
        rows.filter(pk__in=free).update(**told)
    for event in events:
        if event.pk not in free:
            _let_go([event], wake_at)


def cancel_events(events: QuerySet[Event, Event], now: datetime) -> int:
    """Cancel those of ``events`` that have not occurred; say how many."""
    pending = [EventStatus.PENDING, EventStatus.PARKED]  # one with a later offset may be parked after it has occurred
    with transaction.atomic(using=alias_of(Event)):
        rows = list(events.select_for_update().filter(status__in=pending, occurred_at=None))
        for row in rows:
            row.status = EventStatus.CANCELLED
            audible = hears(row, CANCELLED)
            disturb(Event.objects.filter(pk=row.pk), status=EventStatus.CANCELLED, wake_at=now if audible else None)
        if rows:
            for listener in listeners():
                listener.withdrawn(rows, now)
            ring_after_commit(alias_of(Event), Event)
    return len(rows)
