"""Follow-up of written event rows: report failures, plan what subscribers want, make due events occur after commit."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ...db.writer import alias_of
from ...queues.notifier import ring_after_commit
from ...queues.signals import row_parked
from ..callbacks import CREATED
from ..commit_batch import CommitBatch
from ..models import Event, EventStatus
from ..subscribers import subscribers
from ..timing import has_callback
from .desired_event import DesiredEvent
from .values_before import ValuesBefore


def _occurs_at_commit(row: Event, now: datetime) -> bool:
    """Return whether the saving process makes ``row`` occur, or runs its callbacks, right after its commit."""
    definition = row.definition
    if row.wake_at is None or row.wake_at > now or definition is None:
        return False
    is_immediate = row.is_free or not definition.is_scheduled
    return has_callback(row, CREATED) or (is_immediate and row.status == EventStatus.PENDING and row.armed)


def report_failures(pairs: Iterable[tuple[Event, DesiredEvent]]) -> None:
    """Report what raised in a save that changes no row: a worker is about to retry, or the event is parked."""
    for row, desired in pairs:
        if desired.failed_evaluation is not None:
            desired.failed_evaluation.report(row)


def follow_up(rows: list[Event], now: datetime, *, fresh: bool) -> None:
    """Do what follows from written ``rows``, in their transaction. ``fresh``: they were inserted."""
    if not rows:
        return
    for row in rows:
        if row.failed_evaluation is not None:
            row.failed_evaluation.report(row)
        if row.status == EventStatus.PARKED:
            row_parked.send_robust(Event, row=row, reason=row.error)
    for subscriber in subscribers():
        subscriber.plan(rows, now, fresh=fresh)
    due = [row for row in rows if _occurs_at_commit(row, now)]
    if due:
        CommitBatch.of(alias_of(Event)).add(due)
        own = [row for row in due if row.captured_in is None]
        compared = [row for row in own if row.definition is not None and row.definition.compared_fields]
        if compared:
            ValuesBefore.of(alias_of(Event)).armed.update(row.active_key for row in compared)
    elif any(row.wake_at is not None and row.wake_at <= now for row in rows):
        ring_after_commit(alias_of(Event), Event)
