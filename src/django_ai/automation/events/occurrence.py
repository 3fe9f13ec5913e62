"""Occurrence: what happens when an event row is due, in one short fenced transaction, once.

``perform_events`` reads the entities afresh and asks conditions and payloads (user code: no transaction is open), then
writes for each event what its reading says, and fans out: callback executions, and whatever the listeners make. What
lost its lease meanwhile (the entity was saved again, the event cancelled) is left out. After the commit those who wait
for the event are told; the row stays due until they were, so a crash in between only repeats the telling.

``CommitBatch`` is the fast path: the process that saved the entities does this itself right after its commit, for all
events of the commit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..conf import conf
from ..db.inserts import insert_ignoring
from ..db.locks import skipping_locked
from ..db.session import kept_session
from ..db.writer import alias_of
from ..exceptions import LeaseLostError
from ..queues import positions
from ..queues.advance import advance, advance_many
from ..queues.held_leases import is_working, keep_lease_for
from ..queues.notifier import ring_after_commit
from ..queues.signals import row_parked
from ..values.clock import Clock
from .callbacks import callbacks_of
from .evaluation import Evaluation, evaluate_all
from .execution import new_execution
from .models import CallbackExecution, Event, EventStatus
from .notification import notify_subscribers, ring_if_due
from .subscribers import Notification, subscribers


def perform_events(events: Sequence[Event], clock: Clock) -> None:
    """Do what the events are due for. Their leases must be in the caller's hand."""
    keep_lease_for(conf().STEP_TIMEOUT)
    now = clock()
    # Before they are read: reading decides what there is to tell now, and this is what somebody left untold.
    pending_notifications = [
        Notification(event, milestone) for event in events for milestone in event.pending_notifications
    ]
    with kept_session(connections[alias_of(Event)], is_ours=is_working()):
        readings = list(evaluate_all(events, now))
    kept = _occur(readings, now)
    for reading in kept:
        if reading.failed_evaluation is not None:
            reading.failed_evaluation.report(reading.event)
        if reading.event.status == EventStatus.PARKED and not reading.known:
            row_parked.send_robust(Event, row=reading.event, reason=reading.event.error)
    notify_subscribers(
        [
            Notification(reading.event, milestone)
            for reading in kept
            for milestone in reading.event.pending_notifications
        ],
        clock,
    )
    notify_subscribers(pending_notifications, clock)


def _occur(readings: Sequence[Evaluation], now: datetime) -> list[Evaluation]:
    """Write what was read, all in one transaction, and return of which the lease was still ours.

    Who saves several entities locks their events in his order, so nothing is waited for with locks in hand: what
    somebody has locked is written afterwards, by itself.
    """
    free, busy = list(readings), []
    with transaction.atomic(using=alias_of(Event)):
        if len(free) > 1 and connections[alias_of(Event)].features.has_select_for_update:
            rows = Event.objects.filter(pk__in=[reading.event.pk for reading in readings])
            mine = set(skipping_locked(rows).order_by().values_list("pk", flat=True))
            free = [reading for reading in readings if reading.event.pk in mine]
            busy = [reading for reading in readings if reading.event.pk not in mine]
        kept = _write(free)
        _fan_out(kept, now)
        ring_if_due((reading.changes["wake_at"] for reading in kept), now)
    for reading in busy:
        kept += _occur([reading], now)
    return kept


def _write(readings: Sequence[Evaluation]) -> list[Evaluation]:
    """Write what was read, and return of which the lease was still ours. What arrives takes its position."""
    connection = connections[alias_of(Event)]
    if len(readings) == 1 and positions.is_allocated_by_advance(connection):
        return _write_alone(readings[0], connection)
    arriving = [reading for reading in readings if reading.arrives]
    if arriving:
        for reading, position in zip(arriving, positions.allocate(len(arriving)), strict=True):
            reading.changes |= dict.fromkeys(reading.arrives, position)
    kept = advance_many([(reading.event, reading.changes) for reading in readings]) if readings else set()
    return [reading for reading in readings if reading.event.pk in kept]


def _write_alone(reading: Evaluation, connection: BaseDatabaseWrapper) -> list[Evaluation]:
    """Write one reading together with its position, in one statement."""
    if reading.arrives:
        positions.record_arrivals(connection)
    try:
        advance(reading.event, reading.changes, position_columns=reading.arrives)
    except LeaseLostError:
        return []
    return [reading]


def _fan_out(readings: Sequence[Evaluation], now: datetime) -> None:
    executions = [
        new_execution(reading.event, callback, milestone, now)
        for reading in readings
        for milestone in reading.milestones
        for callback in callbacks_of(reading.event.event_name, reading.event.namespace)
        if callback.milestone == milestone
    ]
    if insert_ignoring(CallbackExecution, executions):
        ring_after_commit(alias_of(CallbackExecution), CallbackExecution)
    replanned = [reading.event for reading in readings if reading.replan and not reading.withdrawn]
    occurred = [reading.event for reading in readings if "" in reading.milestones]
    withdrawn = [reading.event for reading in readings if reading.withdrawn]
    for listener in subscribers():
        if replanned:
            listener.plan(replanned, now, fresh=False)
        if occurred:
            listener.occurred(occurred, now)
        if withdrawn:
            listener.withdrawn(withdrawn, now)
