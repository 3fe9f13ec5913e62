"""A worker's path for one callback execution: find the function, call it with the event, commit its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches

from ..db.selects import read_by_pk
from ..exceptions import CodeError, UnknownCallbackError
from ..queues.advance import advance
from ..queues.async_code import awaited
from ..queues.attempt import Progress, attempt
from ..queues.causation import CurrentRun, breaks_chain
from ..queues.limits.acquire import RowSlots
from ..queues.limits.release import left
from ..queues.parking import reason_of, unpark
from ..values.clock import Clock, later
from ..values.digests import digest
from ..values.failures import Raised
from ..values.text import trace_of
from ..values.windows import Debounce, Window
from .callback_limits import KIND, acquire_slots, releasing
from .callbacks import CALLBACK, Callback, all_callbacks, callbacks_of, find_callback
from .entities import read_for_async
from .models import CallbackExecution, Event, ExecutionStatus
from .priorities import priority_of
from .timing import depth_after, trace_after
from .windows import close, events_of


def perform_callback(row: CallbackExecution, clock: Clock) -> None:
    """Run one attempt of the execution."""
    if not CallbackExecution.event.is_cached(row):
        read_events([row])
    event = row.event
    callback = find_callback(event.event_name, row.callback, row.milestone)
    try:
        if callback is None:
            raise UnknownCallbackError(_missing(row))
        if callback.window is None and is_window(row):
            raise UnknownCallbackError(_collects_no_more(row))
        event.check_known()
    except CodeError as error:
        row.park(reason_of(row, error), clock, awaiting_deploy=True)
        return
    if row.status == ExecutionStatus.PARKED:
        unpark(row, ExecutionStatus.PENDING)
    found = callback
    started = clock()
    argument: Event | list[Event] = event
    if callback.window is not None or is_window(row):
        if is_window(row) and row.unique_key != closed_key(row):
            close(row, CALLBACK, row.callback, clock())
        argument = events_of(CALLBACK, row.pk) if is_window(row) else [event]
        if not argument:
            advance(row, _finished(row, ExecutionStatus.CANCELLED, NO_EVENTS, started, clock()).changes)
            return
    row_slots: RowSlots | None = None
    if callback.limits:
        # The window is closed first: what comes while the call waits for its turn is for the next one.
        row_slots = acquire_slots(
            row, callback, clock, lambda error, started: _failed(row, found, error, started, clock())
        )
        if row_slots is None:
            return
        started = clock()

    read_for_async(argument if isinstance(argument, list) else [argument], found.function)

    def work() -> Progress:
        awaited(found.function(argument))
        return releasing(_finished(row, ExecutionStatus.COMPLETED, "", started, clock()), row_slots, clock)

    def rescue(error: Exception) -> Progress:
        return releasing(_failed(row, found, error, started, clock()), row_slots, clock)

    committed = attempt(
        row,
        work,
        rescue,
        current=CurrentRun(
            f"callback:{row.pk}",
            _depth(row, callback, started),
            row.idempotency_key,
            trace_context=trace_after(row.event, callback.offset),
        ),
        atomic=callback.atomic,
        timeout=callback.timeout,
        clock=clock,
        may_wait=not callback.limits and callback.window is None,
    )
    if not committed and row_slots is not None:
        left(KIND, row.pk, clock())


def read_events(rows: Sequence[CallbackExecution]) -> None:
    """Read the events of ``rows``. Each gets an instance of its own, which its function may change."""
    events = read_by_pk(Event, list(dict.fromkeys(row.event_id for row in rows)))
    given: set[int] = set()
    for row in rows:
        event = events.get(row.event_id)
        if event is not None:
            row.event = deepcopy(event) if row.event_id in given else event
            given.add(row.event_id)


def _depth(row: CallbackExecution, callback: Callback, now: datetime) -> int:
    """Return the depth of this attempt in its chain of causes."""
    if row.started_at is not None and breaks_chain(now - row.started_at):
        return 1  # an earlier attempt
    if isinstance(callback.window, Debounce) and breaks_chain(callback.window.period):
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
            **_no_deferrals(row),
        }
    )


def _failed(row: CallbackExecution, callback: Callback, error: Exception, started: datetime, now: datetime) -> Progress:
    """Retry after a pause, or fail after the last attempt."""
    raised = Raised(error, trace_of(error))
    trace = raised.text
    following = raised.next_attempt(callback.retry, row.attempt + 1, row.idempotency_key, now)
    if following is None:
        return replace(_finished(row, ExecutionStatus.FAILED, trace, started, now), failed=(row, trace))
    changes = {"error": trace, "started_at": started, "wake_at": later(now, following.delay), "lease": None}
    if following.counts:
        return Progress(changes | {"attempt": row.attempt + 1} | _no_deferrals(row))
    return Progress(changes | {"deferrals": row.deferrals + 1})


def _no_deferrals(row: CallbackExecution) -> dict[str, int]:
    """Return the change that ends a series of deferrals, if there is one."""
    return {"deferrals": 0} if row.deferrals else {}


NO_EVENTS = "Skipped: no event was left in its window."


def is_window(row: CallbackExecution) -> bool:
    """Return whether the execution handles the events of a window."""
    return row.unique_key != execution_key(row.event_id, row.callback, row.milestone)


def closed_key(row: CallbackExecution) -> str:
    """Return the key of an execution whose window is closed."""
    return digest("closed window", row.pk)


def _collects_no_more(row: CallbackExecution) -> str:
    return (
        f"{row}: the function {row.callback!r} no longer declares debounce= or batch=, and this execution is for "
        "several events. Declare it again, and this resumes automatically. Or delete this row."
    )


def _collecting(name: str) -> Callback | None:
    """Return the function ``name`` that declares a window, if there is one."""
    return next((each for each in all_callbacks() if each.name == name and each.window is not None), None)


def window_of(name: str) -> Window | None:
    """Return the window that the function ``name`` declares, if any."""
    callback = _collecting(name)
    return None if callback is None else callback.window


def new_window(event: Event, name: str, key: str, wake_at: datetime, now: datetime) -> CallbackExecution:
    """Return the unsaved execution of an open window. ``event``: its first event."""
    callback = _collecting(name)
    assert callback is not None
    return CallbackExecution(
        event=event,
        callback=name,
        milestone="",
        created_at=now,
        wake_at=wake_at,
        queue=callback.queue,
        priority=priority_of(event, f"callback {name}", callback.priority),
        unique_key=key,
    )


def execution_key(event_pk: int, callback: str, milestone: str) -> str:
    return digest("callback", event_pk, callback, milestone)


def new_execution(event: Event, callback: Callback, milestone: str, now: datetime) -> CallbackExecution:
    return CallbackExecution(
        event=event,
        callback=callback.name,
        milestone=milestone,
        created_at=now,
        wake_at=now,
        queue=callback.queue,
        priority=priority_of(event, f"callback {callback.name} {milestone}", callback.priority),
        unique_key=execution_key(event.pk, callback.name, milestone),
    )
