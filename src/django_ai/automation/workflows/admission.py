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
from ..events.evaluation import RETRY
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

SLACK = timedelta(seconds=5)
"""A run that is planned for a date that was past already counts from its creation, which the saving machine's clock
has written and the database's has not: so much may they differ."""


def begins_now(run: WorkflowRun, definition: WorkflowDefinition, clock: Clock) -> bool:
    """Say whether a planned run begins now. Its event may have changed behind Django's back."""
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
            _ask_again(run, event, error, clock)
            return False
    run.attempt = 0  # those of its condition are not its first step's
    if not valid:
        if occurred and event.has_date:
            reason = f"Skipped: recheck=True, and the condition of {event} was not true when this was to begin."
            advance(run, ended(WorkflowStatus.CANCELLED, reason, clock()))
        else:
            _withdraw(run, event, clock())
        return False
    due = None if at is None else shift(at, definition.offset)
    if due is not None and due > clock():
        advance(run, {"attempt": 0, "error": "", "wake_at": due, "lease": None})
        return False
    # It begins at its date, however late this worker is: what has come since then is heard.
    begins = run.created_at - SLACK
    run.position = bound_at(begins if due is None else max(due, begins), clock())
    return True


def _ask_again(run: WorkflowRun, event: Event, error: Exception, clock: Clock) -> None:
    """Look at a planned run again after a backoff, as at an event whose condition raises, or park it."""
    text = f"The condition of {event} raised:\n{trace_of(error)}"
    delay = None if isinstance(error, AutomationError) else RETRY.delay(run.attempt + 1)
    if delay is None:
        run.park(text, clock)
    else:
        changes = {"attempt": run.attempt + 1, "error": text, "wake_at": clock() + delay, "lease": None}
        advance(run, changes)


def cancel_if_claimed(run: WorkflowRun, clock: Clock) -> bool:
    """End a run whose event somebody else keeps to himself; say whether it was so."""
    event = run.event
    assert event is not None
    claim = claim_against(event, Owner(KIND, run.pk), clock())
    if claim is None:
        return False
    advance(run, ended(WorkflowStatus.CANCELLED, f"Skipped: {claim}.", clock()))
    return True


def _withdraw(run: WorkflowRun, event: Event, now: datetime) -> None:
    """Take back a planned run whose condition is false; when it turns true again, the next save plans it anew."""
    reason = "the condition of its event is not true any more"
    if event.entity is None or not event.has_date:
        reason = "its entity is gone" if event.entity is None else "its event has no date any more"
    with transaction.atomic(using=alias_of(WorkflowRun)):
        advance(run, {**withdrawn(reason, now), "lease": None})
        Event.objects.filter(pk=event.pk).update(armed=False)
