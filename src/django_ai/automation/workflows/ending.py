"""How runs end from outside: cancelled, failed with their parent, or withdrawn before they start."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import transaction

from ..db.writer import alias_of
from ..events.claims import release_all
from ..events.models import Event, EventStatus
from ..queues.causation import end_own_run
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..values.json_text import storable
from .child_runs import wake_parent
from .current import KIND
from .models import Wait, WorkflowRun, WorkflowRunQuerySet, WorkflowStatus


def withdraw(runs: WorkflowRunQuerySet, reason: str, now: datetime) -> int:
    """Withdraw those of ``runs`` that are planned and have not started; return how many.

    The rows stay with the reason until ``RETENTION_RUNS`` is over or they are planned again.
    """
    return revoke(runs.not_started(), **withdrawn(reason, now))


def withdrawn(reason: str, now: datetime) -> dict[str, Any]:
    """Return the changes that withdraw a planned run."""
    error = storable(f"Withdrawn before it was to start: {reason}.")
    return {"status": WorkflowStatus.WITHDRAWN, "error": error, "finished_at": now, "wake_at": None}


def withdrawal_reason(event: Event) -> str:
    """Return why no run is planned for ``event`` in its current state."""
    if event.status in (EventStatus.CANCELLED, EventStatus.EXPIRED):
        return f"its event is {event.status}" + (f": {event.error.rstrip('.')}" if event.error else "")
    if event.at is None:
        return "its event no longer has a date"
    if not event.armed:
        return "the condition of its event is no longer true"
    return "the date of its event was moved too far into the past"


def end_runs(runs: Iterable[WorkflowRun], status: WorkflowStatus, reason: str, now: datetime) -> int:
    """End ``runs`` and the children that they wait for, and wake their parents; return how many ended.

    One transaction, which waits for no worker: a worker that leases one of them has its write refused. A run that ends
    itself within its own step ends with that step's commit.
    """
    ended, reason = 0, storable(reason)
    alias = alias_of(WorkflowRun)
    with transaction.atomic(using=alias):
        for run in runs:
            if end_own_run(KIND, run.pk, status, reason):
                ended += 1
                continue
            changed = revoke(
                WorkflowRun.objects.unfinished().filter(pk=run.pk),
                status=status,
                error=reason,
                finished_at=now,
                wake_at=None,
            )
            if changed:
                ended += 1
                Wait.objects.filter(run=run.pk).delete()
                release_all(KIND, run.pk)
                wake_parent(run, {"status": status.value, "data": run.data, "error": reason}, now)
                children = WorkflowRun.objects.unfinished().filter(parent=run.pk)
                ended += end_runs(children, status, f"Its parent {run} ended: {reason}", now)
        if ended:
            ring_after_commit(alias)
    return ended
