"""A worker's path for one callback execution: find the function, call it with the event, commit its outcome."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches

from ..exceptions import CodeError, UnknownCallbackError
from ..queues.attempt import Progress, attempt
from ..queues.causation import CurrentRun, breaks_chain
from ..queues.parking import reason_of, unpark
from ..values.clock import Clock
from ..values.digests import digest
from ..values.text import trace_of
from .callbacks import Callback, callbacks_of, find_callback
from .models import CallbackExecution, Event, ExecutionStatus
from .timing import depth_after


def perform_callback(row: CallbackExecution, clock: Clock) -> None:
    """Run one attempt of the execution."""
    event = row.event
    callback = find_callback(event.event_name, row.callback, row.milestone)
    try:
        if callback is None:
            raise UnknownCallbackError(_missing(row))
        event.check_known()
    except CodeError as error:
        row.park(reason_of(row, error), clock, awaiting_deploy=True)
        return
    if row.status == ExecutionStatus.PARKED:
        unpark(row, ExecutionStatus.PENDING)
    found = callback
    started = clock()

    def work() -> Progress:
        found.function(event)
        return _finished(row, ExecutionStatus.COMPLETED, "", started, clock())

    def rescue(error: Exception) -> Progress:
        return _failed(row, found, error, started, clock())

    attempt(
        row,
        work,
        rescue,
        current=CurrentRun(f"callback:{row.pk}", _depth(row, callback), row.idempotency_key),
        atomic=callback.atomic,
        timeout=callback.timeout,
        clock=clock,
    )


def _depth(row: CallbackExecution, callback: Callback) -> int:
    """Return the depth of this attempt in its chain of causes."""
    if row.attempt and breaks_chain(callback.retry.delay(row.attempt)):
        return 1
    return depth_after(row.event, callback.offset)


def _missing(row: CallbackExecution) -> str:
    """Return the error for a function that is no longer subscribed, with the fix."""
    event, at = row.event, f" at {row.milestone!r}" if row.milestone else ""
    names = sorted({each.name for each in callbacks_of(event.event_name, event.namespace)})
    near = get_close_matches(row.callback, names, n=1)
    hint = f" Was it renamed to {near[0]!r}?" if near else ""
    return (
        f"{row}: no function {row.callback!r} subscribes to {event.event_name!r}{at} any longer.{hint} Restore it, or "
        f"give the moved function name={row.callback!r}, and this resumes automatically. Or delete this row."
    )


def _finished(
    row: CallbackExecution, status: ExecutionStatus, error: str, started: datetime, finished: datetime
) -> Progress:
    return Progress(
        {
            "status": status,
            "error": error,
            "attempt": row.attempt + 1,
            "started_at": started,
            "finished_at": finished,
            "wake_at": None,
            "lease": None,
        }
    )


def _failed(row: CallbackExecution, callback: Callback, error: Exception, started: datetime, now: datetime) -> Progress:
    """Retry after the backoff, or fail after the last attempt."""
    delay = callback.retry.delay(row.attempt + 1)
    if delay is None:
        trace = trace_of(error)
        return replace(_finished(row, ExecutionStatus.FAILED, trace, started, now), failed=(row, trace))
    return Progress(
        {
            "attempt": row.attempt + 1,
            "error": trace_of(error),
            "started_at": started,
            "wake_at": now + delay,
            "lease": None,
        }
    )


def new_execution(event: Event, callback: Callback, milestone: str, now: datetime) -> CallbackExecution:
    return CallbackExecution(
        event=event,
        callback=callback.name,
        milestone=milestone,
        created_at=now,
        wake_at=now,
        unique_key=digest("callback", event.pk, callback.name, milestone),
    )
