"""Whether a run that was loaded starts now: a planned run's date and condition may have changed, another run may have
claimed its event, and its workflow may want only some events (``when=``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.db import connections, transaction

from ..db.errors import own_failures
from ..db.session import kept_session
from ..db.writer import alias_of, from_writer
from ..events.claim_lookup import claim_against
from ..events.entities import awaited_about
from ..events.evaluation import evaluation_retry_delay
from ..events.failed_evaluation import FailedEvaluation
from ..events.models import Event
from ..queues.advance import advance
from ..queues.causation import Owner
from ..queues.held_leases import is_working
from ..queues.positions import bound_at
from ..values.clock import Clock, shift
from ..values.json_text import storable
from ..values.text import trace_of
from ..values.zones import zone_or_default
from .current_run import KIND
from .definitions import WorkflowDefinition
from .ending import withdrawn
from .models import WorkflowRun
from .registration import forget_cancel_on
from .statuses import WorkflowStatus
from .transitions import ended

T = TypeVar("T")

MAX_CLOCK_SKEW = timedelta(seconds=5)
"""How far the clocks of a saving machine and of the database may differ.

A run that was planned for a past date receives events from its creation on, a time that the saving machine has written.
"""


def begins_now(run: WorkflowRun, definition: WorkflowDefinition, clock: Clock) -> bool:
    """Return whether a planned run starts now. Writes that bypass Django's signals may have changed its event."""
    event = run.event
    assert event is not None
    occurred = event.occurred_at is not None

    def state() -> tuple[bool, datetime | None, str]:
        valid = event.has_date if occurred and not definition.recheck else event.is_valid
        if not valid:
            return False, event.at, event.timezone
        timezone = event.current_timezone()
        return True, event.current_date(timezone), timezone

    found = _evaluated(run, f"The condition of {event}", state, clock)
    if found is None:
        return False
    valid, at, timezone = found
    if not valid:
        if occurred and event.has_date:
            reason = f"Skipped: recheck=True, and the condition of {event} was not true when this run was to start."
            advance(run, ended(WorkflowStatus.CANCELLED, reason, clock()))
        else:
            _withdraw_run(run, event, clock())
        return False
    due = None if at is None else shift(at, definition.offset, zone_or_default(timezone))
    if due is not None and due > clock():
        # What a run has got when it registered what cancels it, or asked for its limits: it gets it again at its date.
        again: dict[str, Any] = {"data": {}, "deadline": None} if run.data or run.deadline is not None else {}
        if run.data and definition.cancel_on:
            forget_cancel_on(run)
        again |= {"attempt": 0, "deferrals": 0, "failed_evaluations": 0, "error": ""}
        advance(run, {"wake_at": due, "lease": None, **again})
        return False
    # It starts at its date, however late this worker is, and receives what has arrived since then.
    if run.deadline is None:
        run.deadline = definition.deadline_from(run.created_at if due is None else max(due, run.created_at))
    created = run.created_at - MAX_CLOCK_SKEW
    run.position = bound_at(created if due is None else max(due, created), clock())
    return True


def wanted(run: WorkflowRun, definition: WorkflowDefinition, events: Sequence[Event], clock: Clock) -> Sequence[Event]:
    """Return those of ``events`` for which ``when=`` of the workflow is true. Where there are none, the run ends; if
    ``when`` raises, the run is evaluated again or parked, and none are returned."""
    when = definition.when
    if when is None or not events:
        return events

    def select() -> list[Event]:
        with from_writer():
            return [event for event in events if awaited_about(event, when(event))]

    which = str(events[0]) if len(events) == 1 else f"{len(events)} events"
    found = _evaluated(run, f"when= of {definition.name}, called with {which},", select, clock)
    if found is not None and not found:
        reason = f"Skipped: when= of {definition.name} was not true for {which} when this run was to start."
        advance(run, ended(WorkflowStatus.CANCELLED, reason, clock()))
    return found or []


def _evaluated(run: WorkflowRun, what: str, evaluate: Callable[[], T], clock: Clock) -> T | None:
    """Return what ``evaluate``, a function of the project, returns. If it raises, return None: the run is evaluated
    again after a backoff, or parked."""
    connection = connections[alias_of(WorkflowRun)]
    started = time.monotonic()
    with own_failures(connection) as is_ours:
        try:
            with kept_session(connection, is_ours=is_working()):
                return evaluate()
        except Exception as error:
            if is_ours(error):
                raise
            FailedEvaluation(error, time.monotonic() - started).report(run)
            _retry_or_park(run, what, error, clock)
            return None


def _retry_or_park(run: WorkflowRun, what: str, error: Exception, clock: Clock) -> None:
    """Evaluate ``what`` again after a backoff, as for an event whose condition raises, or park the run. A failed
    evaluation is no attempt of the first step, and is not in the history."""
    reason, number = storable(f"{what} raised:\n{trace_of(error)}"), run.failed_evaluations + 1
    delay = evaluation_retry_delay(error, number)
    if delay is None:
        run.park(reason, clock)
    else:
        changes = {"status": WorkflowStatus.WAITING, "failed_evaluations": number, "error": reason, "lease": None}
        advance(run, changes | {"wake_at": run.by_deadline(clock() + delay)})


def cancel_if_claimed(run: WorkflowRun, clock: Clock) -> bool:
    """Cancel a run whose event another run has claimed; return whether that was so."""
    event = run.event
    assert event is not None
    claim = claim_against(event, Owner(KIND, run.pk), clock())
    if claim is None:
        return False
    advance(run, ended(WorkflowStatus.CANCELLED, f"Skipped: {claim}.", clock()))
    return True


def _withdraw_run(run: WorkflowRun, event: Event, now: datetime) -> None:
    """Withdraw a planned run whose condition is false. If it becomes true again, the next save plans the run again."""
    reason = "the condition of its event is no longer true"
    if event.entity is None or not event.has_date:
        reason = "its entity was deleted" if event.entity is None else "its event no longer has a date"
    with transaction.atomic(using=alias_of(WorkflowRun)):
        advance(run, {**withdrawn(reason, now), "lease": None})
        Event.objects.filter(pk=event.pk).update(armed=False)
