"""Calls of functions and their limits: a call acquires a slot of each before it runs, waits for its turn, or ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from django.db import connections, transaction

from ..db.errors import is_database_failure
from ..db.locks import locked
from ..db.writer import alias_of
from ..queues.advance import advance
from ..queues.attempt import Progress, commit
from ..queues.lease import revoke
from ..queues.limits.acquire import Applicant, RowSlots
from ..queues.limits.owners import SlotOwner, wakeable_owner
from ..queues.limits.release import release_from_outside
from ..queues.models import SlotTerm
from ..queues.parking import park
from ..values.clock import Clock
from ..values.json_text import storable
from ..values.limits import DeclaredLimit
from .callbacks import Callback, all_callbacks, find_callback
from .limit_keys import event_key
from .models import CallbackExecution, ExecutionStatus

KIND = "callback"
UNFINISHED = (ExecutionStatus.PENDING, ExecutionStatus.PARKED)


def limiter_name(callback: Callback) -> str:
    """Return the name under which the limits of a subscription are stored: each has its own."""
    at = f" at {callback.milestone}" if callback.milestone else ""
    return f"{callback.name} on {callback.event_name}{at}"


def acquire_slots(
    row: CallbackExecution, callback: Callback, clock: Clock, failed: Callable[[Exception, datetime], Progress]
) -> RowSlots | None:
    """Return what the call holds of each limit of its function; None if it waits for its turn, failed or ended.

    ``failed``: makes the progress of an attempt that an exception has ended.
    """
    row_slots, started = RowSlots(KIND, row.pk), clock()
    has_started = row.started_at is not None
    missing = row_slots.missing(callback.limits, has_started=has_started)
    try:
        keys = {each.name: event_key(each, row.event) for each in missing}
    except Exception as error:
        if is_database_failure(error, connections[alias_of(CallbackExecution)]):
            raise
        progress = failed(error, started)
        commit(row, replace(progress, changes={**progress.changes, "started_at": row.started_at}))
        return None

    def let_wait(start: datetime | None) -> None:
        advance(row, {"wake_at": start, "lease": None, "losses": row.losses})

    def refuse(reason: str) -> None:
        now = clock()
        ended = {"status": ExecutionStatus.CANCELLED, "error": reason, "finished_at": now}
        advance(row, {**ended, "wake_at": None, "lease": None})

    applicant = Applicant(
        row=row, name=limiter_name(callback), has_started=has_started, let_wait=let_wait, refuse=refuse
    )
    acquired = row_slots.acquire(applicant, missing, lambda each: keys[each.name], clock)
    return row_slots if acquired else None


def releasing(progress: Progress, row_slots: RowSlots | None, clock: Clock) -> Progress:
    """Return ``progress``, which ends an attempt, with the write that releases its slot of each limit."""
    if row_slots is None:
        return progress
    wake_at, now = progress.changes["wake_at"], clock()
    if wake_at is not None and wake_at <= now:
        return progress
    return replace(progress, writes=(*progress.writes, lambda: row_slots.release(now, has_ended=wake_at is None)))


def park_execution(row: CallbackExecution, reason: str, now: datetime, *, awaiting_deploy: bool) -> None:
    """Park an execution that this worker has leased. It keeps only what it holds until it ends."""
    callback = find_callback(row.event.event_name, row.callback, row.milestone)
    if callback is None or not callback.limits:
        park(row, reason, now, awaiting_deploy=awaiting_deploy)
        return
    with transaction.atomic(using=alias_of(CallbackExecution)):
        park(row, reason, now, awaiting_deploy=awaiting_deploy)
        release_from_outside(KIND, [row.pk], now, terms=(SlotTerm.EXECUTION, SlotTerm.START))


def slot_owner() -> SlotOwner:
    """Return how limits reach calls."""

    def find(name: str) -> tuple[DeclaredLimit, ...] | None:
        return next((each.limits for each in all_callbacks() if limiter_name(each) == name), None)

    def cancel(pk: int, reason: str, now: datetime) -> None:
        with transaction.atomic(using=alias_of(CallbackExecution)):
            row = locked(CallbackExecution.objects.filter(pk=pk, status__in=UNFINISHED)).first()
            if row is None:
                return
            ended = {"status": ExecutionStatus.CANCELLED, "error": storable(reason), "finished_at": now}
            revoke(CallbackExecution.objects.filter(pk=pk), **ended, wake_at=None)
            release_from_outside(KIND, [pk], now, leased_until=row.wake_at if row.lease else None)

    return wakeable_owner(
        KIND,
        CallbackExecution,
        find,
        lambda: CallbackExecution.objects.filter(status=ExecutionStatus.PENDING, wake_at=None, lease=None),
        cancel,
    )
