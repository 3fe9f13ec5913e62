"""Occurrence: what happens when event rows are due, in one short fenced transaction, exactly once.

``perform_events`` evaluates the rows (user code, no transaction is open), then writes each evaluation and fans out:
callback executions, and whatever the subscribers create. On PostgreSQL the transaction of an event that starts one row
at most is one statement. A row whose lease was lost meanwhile (the entity was saved again, the event cancelled) is
skipped. After the commit the waiting subscribers are notified; the row stays due until then, so a crash in between only
repeats the notification.

``commit_batch.CommitBatch`` is the fast path: the process that saved the entities calls this right after its commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..conf import conf
from ..db.connections import is_autocommitted
from ..db.inserts import insert_ignoring
from ..db.locks import skipping_locked
from ..db.session import kept_session
from ..db.writer import alias_of
from ..exceptions import LeaseLostError
from ..queues import positions
from ..queues.advance import Started, advance, advance_and_start, advance_many
from ..queues.held_leases import is_working, keep_lease_for
from ..queues.lanes import lane_of
from ..queues.notifier import ring_after_commit
from ..queues.signals import row_parked
from ..queues.tracing import occurrence_changes
from ..values.clock import Clock
from .callbacks import callbacks_of
from .evaluation import Evaluation, evaluate_all
from .execution import new_execution
from .models import CallbackExecution, CollectedEvent, Event, EventStatus
from .notification import notify_subscribers, ring_if_due
from .subscribers import Notification, subscribers
from .windows import collected


def perform_events(events: Sequence[Event], clock: Clock) -> None:
    """Perform what the events are due for. The caller holds their leases."""
    keep_lease_for(conf().STEP_TIMEOUT)
    now = clock()
    # Read before the evaluation, which overwrites it: notifications that an earlier process did not deliver.
    undelivered = [Notification(event, milestone) for event in events for milestone in event.pending_notifications]
    with kept_session(connections[alias_of(Event)], is_ours=is_working()):
        evaluations = list(evaluate_all(events, now))
        _prepare(evaluations, now)
    kept = _occur_in_one_statement(evaluations, now) or _occur(evaluations, now)
    for evaluation in kept:
        if evaluation.failed_evaluation is not None:
            evaluation.failed_evaluation.report(evaluation.event)
        if evaluation.event.status == EventStatus.PARKED and not evaluation.was_parked:
            row_parked.send_robust(Event, row=evaluation.event, reason=evaluation.event.error)
    notify_subscribers(
        [Notification(each.event, milestone) for each in kept for milestone in each.event.pending_notifications],
        clock,
    )
    notify_subscribers(undelivered, clock)


def _prepare(evaluations: Sequence[Evaluation], now: datetime) -> None:
    """Call what is user code and belongs to the rows that the events start. No transaction is open."""
    for evaluation in evaluations:
        event = evaluation.event
        if "" in evaluation.milestones:
            evaluation.changes |= occurrence_changes(event)
        evaluation.executions = [
            new_execution(event, callback, milestone, now)
            for milestone in evaluation.milestones
            for callback in callbacks_of(event.event_name, event.namespace)
            if callback.milestone == milestone and callback.window is None
        ]
    starting = [each.event for each in evaluations if each.replan or "" in each.milestones]
    if starting:
        for subscriber in subscribers():
            subscriber.prepare(starting)


def _occur_in_one_statement(evaluations: Sequence[Evaluation], now: datetime) -> list[Evaluation]:
    """Write an evaluation that starts one row at most, without a transaction around it: five statements become one.

    Returns nothing where that is not possible, or where nothing was written because the lease was lost; then ``_occur``
    finds out which. Only on PostgreSQL.
    """
    connection = connections[alias_of(Event)]
    if len(evaluations) != 1 or not positions.is_allocated_by_advance(connection) or not is_autocommitted(connection):
        return []
    evaluation = evaluations[0]
    event, columns = evaluation.event, evaluation.position_columns
    if not columns or evaluation.replan or evaluation.withdrawn or evaluation.windows:
        return []
    event.trace_context = evaluation.changes.get("trace_context", event.trace_context)
    started = [Started(execution) for execution in evaluation.executions]
    for subscriber in subscribers() if "" in evaluation.milestones else ():
        more = subscriber.started_by(event, now)
        if more is None:
            return []
        started += more
    if len(started) > 1:
        return []
    if not started:
        if not _write_alone(evaluation, connection):
            return []
    else:
        inserted = advance_and_start(event, evaluation.changes, columns, started[0])
        if inserted is None:
            return []
        if inserted:
            row = started[0].row
            ring_after_commit(alias_of(type(row)), lane_of(row))
    ring_if_due([evaluation.changes["wake_at"]], now)
    return [evaluation]


def _occur(evaluations: Sequence[Evaluation], now: datetime) -> list[Evaluation]:
    """Write the evaluations in one transaction, and return those whose lease was still held.

    A transaction that saves several entities locks their events in its own order. To avoid a deadlock, this one never
    waits while it holds locks: rows that others have locked are written afterwards, one transaction each.
    """
    free, busy = list(evaluations), []
    with transaction.atomic(using=alias_of(Event)):
        if len(free) > 1 and connections[alias_of(Event)].features.has_select_for_update:
            rows = Event.objects.filter(pk__in=[each.event.pk for each in evaluations])
            unlocked_pks = set(skipping_locked(rows).order_by().values_list("pk", flat=True))
            free = [each for each in evaluations if each.event.pk in unlocked_pks]
            busy = [each for each in evaluations if each.event.pk not in unlocked_pks]
        kept = _write(free)
        _fan_out(kept, now)
        ring_if_due((evaluation.changes["wake_at"] for evaluation in kept), now)
    for evaluation in busy:
        kept += _occur([evaluation], now)
    return kept


def _write(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Write the evaluations, and return those whose lease was still held. Milestones get their position here."""
    connection = connections[alias_of(Event)]
    if len(evaluations) == 1 and positions.is_allocated_by_advance(connection):
        return _write_alone(evaluations[0], connection)
    arriving = [evaluation for evaluation in evaluations if evaluation.position_columns]
    if arriving:
        for evaluation, position in zip(arriving, positions.allocate(len(arriving)), strict=True):
            evaluation.changes |= dict.fromkeys(evaluation.position_columns, position)
    kept = advance_many([(each.event, each.changes) for each in evaluations]) if evaluations else set()
    return [evaluation for evaluation in evaluations if evaluation.event.pk in kept]


def _write_alone(evaluation: Evaluation, connection: BaseDatabaseWrapper) -> list[Evaluation]:
    """Write one evaluation together with its position, in one statement."""
    if evaluation.position_columns:
        positions.record_arrivals(connection)
    try:
        advance(evaluation.event, evaluation.changes, position_columns=evaluation.position_columns)
    except LeaseLostError:
        return []
    return [evaluation]


def _fan_out(evaluations: Sequence[Evaluation], now: datetime) -> None:
    executions = [execution for evaluation in evaluations for execution in evaluation.executions]
    windows = [(evaluation.event, each) for evaluation in evaluations for each in evaluation.windows]
    insert_ignoring(CollectedEvent, [collected(*target, event, now) for event, target in windows])
    if insert_ignoring(CallbackExecution, executions):
        ring_after_commit(alias_of(CallbackExecution), *map(lane_of, executions))
    replanned = [evaluation.event for evaluation in evaluations if evaluation.replan and not evaluation.withdrawn]
    occurred = [evaluation.event for evaluation in evaluations if "" in evaluation.milestones]
    withdrawn = [evaluation.event for evaluation in evaluations if evaluation.withdrawn]
    for subscriber in subscribers():
        if replanned:
            subscriber.plan(replanned, now, fresh=False)
        if occurred:
            subscriber.occurred(occurred, now)
        if withdrawn:
            subscriber.withdrawn(withdrawn, now)
