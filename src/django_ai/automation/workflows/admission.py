"""Whether a run that was loaded starts now: a planned run's date and condition may have changed, and another run may
have claimed its event.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from django.db import connections, transaction

from ..db.errors import own_failures
from ..db.session import kept_session
from ..db.writer import alias_of
from ..events.claim_lookup import claim_against
from ..events.evaluation import EVALUATION_RETRY
from ..events.failed_evaluation import FailedEvaluation
from ..events.models import Event
from ..exceptions import AutomationError
from ..queues.advance import advance
from ..queues.causation import Owner
from ..queues.held_leases import is_working
from ..queues.positions import bound_at
from ..values.clock import Clock, shift
from ..values.text import trace_of
from .current import KIND
from .definitions import WorkflowDefinition
from .ending import withdrawn
from .models import WorkflowRun, WorkflowStatus
from .transitions import ended

MAX_CLOCK_SKEW = timedelta(seconds=5)
"""How far the clocks of a saving machine and of the database may differ.

A run that was planned for a past date receives events from its creation on, a time that the saving machine has written.
"""


def begins_now(run: WorkflowRun, definition: WorkflowDefinition, clock: Clock) -> bool:
    """Return whether a planned run starts now. Writes that bypass Django's signals may have changed its event."""
    event = run.event
    assert event is not None
    connection = connections[alias_of(WorkflowRun)]
    started = time.monotonic()
    with own_failures(connection) as is_ours:
        try:
            occurred = event.occurred_at is not None
            with kept_session(connection, is_ours=is_working()):
                valid = event.has_date if occurred and not definition.recheck else event.is_valid
                at = event.current_date() if valid else event.at
        except Exception as error:
            if is_ours(error):
                raise
            FailedEvaluation(error, time.monotonic() - started).report(run)
            _retry_or_park(run, event, error, clock)
            return False
    run.attempt = 0  # attempts to evaluate the condition do not count for the first step
    if not valid:
        if occurred and event.has_date:
            reason = f"Skipped: recheck=True, and the condition of {event} was not true when this run was to start."
            advance(run, ended(WorkflowStatus.CANCELLED, reason, clock()))
        else:
            _withdraw_run(run, event, clock())
        return False
    due = None if at is None else shift(at, definition.offset)
    if due is not None and due > clock():
        advance(run, {"attempt": 0, "error": "", "wake_at": due, "lease": None})
        return False
    # It starts at its date, however late this worker is, and receives what has arrived since then.
    created = run.created_at - MAX_CLOCK_SKEW
    run.position = bound_at(created if due is None else max(due, created), clock())
    return True


def _retry_or_park(run: WorkflowRun, event: Event, error: Exception, clock: Clock) -> None:
    """Retry a planned run after a backoff, like an event whose condition raises, or park it."""
    reason = f"The condition of {event} raised:\n{trace_of(error)}"
    delay = None if isinstance(error, AutomationError) else EVALUATION_RETRY.delay(run.attempt + 1)
    if delay is None:
        run.park(reason, clock)
    else:
        changes = {"attempt": run.attempt + 1, "error": reason, "wake_at": clock() + delay, "lease": None}
        advance(run, changes)


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
