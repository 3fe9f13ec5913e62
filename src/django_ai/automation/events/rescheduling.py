"""``event.fire_now`` and ``event.move``: a pending event occurs at another time than it would.

Fired now, an event occurs before its date, which stays: offsets count from the date, before and after it. The mark
``FIRE_NOW`` in ``Event.fired`` makes it due, and the worker that performs it does everything as at its date: it
evaluates the condition, gives the occurrence its position, and notifies the subscribers. The mark survives a save of
the entity, because a save computes the timer from the same columns.

Moved, an event without an entity has another date, and its offsets follow.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from django.db import transaction

from ..db.deadlocks import retry_on_deadlock
from ..db.locks import locked
from ..db.writer import alias_of
from ..exceptions import DefinitionError, StateError
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..queues.wakeable import at_text
from ..values.clock import aware
from .models import Event, EventStatus
from .recording.event_row import set_timer
from .recording.follow_up import follow_up
from .timing import FIRE_NOW, rearm_future

R = TypeVar("R")


def fire_now(event: Event, now: datetime) -> bool:
    """Let a pending event occur now; return whether it was not due yet."""
    what = "event.fire_now()"

    def write(row: Event) -> bool:
        _check_pending(what, row)
        definition = row.definition
        if row.at is None or not row.armed:
            field = None if definition is None else definition.date_field
            if row.armed and field:
                raise StateError(f"{what}: {row} has no date: {field!r} is NULL. Set it, and save the entity.", row)
            raise StateError(f"{what}: {row} cannot occur, because its condition is false. Change the entity.", row)
        if FIRE_NOW in row.fired or (row.wake_at is not None and row.at <= now):
            return False
        revoke(Event.objects.filter(pk=row.pk), fired=[*row.fired, FIRE_NOW], wake_at=now)
        ring_after_commit(alias_of(Event), Event)
        return True

    return _locked(event, what, write)


def move(event: Event, at: datetime, now: datetime) -> bool:
    """Give a pending event without an entity another date; return whether it had another one."""
    what = "event.move()"
    moment = aware(at, f"{what}: at")

    def write(row: Event) -> bool:
        definition = row.definition
        if not row.is_free:
            field = None if definition is None else definition.date_field
            why = "has no date: it occurs with a save of its entity"
            if field:
                why = f"follows {row.entity_type}.{field}: change that field, and save the entity"
            raise DefinitionError(f"{what}: {row} {why}.")
        _check_pending(what, row)
        row.check_known(declared=True)
        assert definition is not None
        if row.at == moment and FIRE_NOW not in row.fired:
            return False
        row.at, row.fired = moment, [each for each in row.fired if each != FIRE_NOW]
        rearm_future(row, now)
        set_timer(row, definition, now)
        columns = ("at", "fired", "status", "error", "parked_at", "depth", "wake_at", "planned_for", "recorded_after")
        revoke(Event.objects.filter(pk=row.pk), **{name: getattr(row, name) for name in columns})
        row.seq, row.lease = row.seq + 1, None
        follow_up([row], now, fresh=False)
        return True

    return _locked(event, what, write)


def _locked(event: Event, what: str, write: Callable[[Event], R]) -> R:
    """Lock the event and let ``write`` change it, in one transaction; read ``event`` again."""
    alias = alias_of(Event)

    def work() -> R:
        with transaction.atomic(using=alias):
            row = locked(Event.objects.filter(pk=event.pk)).first()
            if row is None:
                raise StateError(f"{what}: {event} was removed (RETENTION_EVENTS).", event)
            return write(row)

    result = retry_on_deadlock(alias, work)
    event.refresh_from_db()
    return result


def _check_pending(what: str, event: Event) -> None:
    if event.status == EventStatus.PARKED:
        raise StateError(f"{what}: {event} is parked. Use event.resume() once its cause is repaired.", event)
    if event.occurred_at is not None:
        raise StateError(f"{what}: {event} has occurred at {at_text(event.occurred_at)}, and occurs once.", event)
    if event.status != EventStatus.PENDING:
        raise StateError(f"{what}: {event} is {event.status}. Only a pending event can occur.", event)
