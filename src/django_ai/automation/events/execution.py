"""A worker's path for one callback execution: find the function, call it with the event, commit what came of it."""

from __future__ import annotations

from datetime import datetime

from ..exceptions import UnknownCallbackError
from ..queues.attempt import Progress, attempt, trace_of
from ..queues.cause import Cause
from ..queues.clock import Clock
from .callbacks import Callback, find_callback
from .models import CallbackExecution, ExecutionStatus


def perform_callback(row: CallbackExecution, clock: Clock) -> None:
    """Run one try of the execution."""
    event = row.event
    callback = find_callback(event.event_name, row.callback, row.beat)
    if callback is None:
        row.park(
            f"{UnknownCallbackError.__name__}: no function {row.callback!r} listens to {event.event_name!r}"
            f"{f' at {row.beat!r}' if row.beat else ''} any more. Bring it back (or give its new place name="
            f"{row.callback!r}) and resume, or delete this row."
        )
        return
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
        cause=Cause(f"callback:{row.pk}", event.depth + 1, row.idempotency_key),
        atomic=callback.atomic,
        timeout=callback.timeout,
        clock=clock,
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
    """Try again after the backoff, or fail for good."""
    delay = callback.retry.delay(row.attempt + 1)
    if delay is None:
        return _finished(row, ExecutionStatus.FAILED, trace_of(error), started, now)
    return Progress(
        {
            "attempt": row.attempt + 1,
            "error": trace_of(error),
            "started_at": started,
            "wake_at": now + delay,
            "lease": None,
        }
    )
