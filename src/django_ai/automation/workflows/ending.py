"""How runs are ended from outside: cancelled by a person or by what they wait for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from ..events.claims import release_all
from ..queues.cause import end_own_run
from ..queues.executor import ring_after_commit
from ..queues.jsontext import storable
from ..queues.lease import alias_of, disturb
from .context import KIND
from .models import Signal, Wait, WorkflowRun, WorkflowStatus


def withdraw(runs: QuerySet[WorkflowRun]) -> int:
    """Remove those of ``runs`` that are planned and have not begun, as if they had never been; say how many.

    In the caller's transaction. They are taken from their workers first: a delete by itself would remove a run that
    begins at this moment.
    """
    ids = list(runs.values_list("pk", flat=True))
    taken = WorkflowRun.objects.not_begun().filter(pk__in=ids)
    if not ids or not disturb(taken, status=WorkflowStatus.CANCELLED, wake_at=None):
        return 0
    gone = WorkflowRun.objects.filter(pk__in=ids, planned=True, started_at=None, status=WorkflowStatus.CANCELLED)
    return gone.delete()[0]


def end_runs(runs: Iterable[WorkflowRun], status: WorkflowStatus, reason: str, now: datetime) -> int:
    """End ``runs`` and the children that they wait for, and wake their parents; return how many ended.

    One transaction. A worker that has one of them finds its write refused. Returns at once: nobody is waited for. A run
    that is ended from within its own step ends with that step's commit.
    """
    ended, reason = 0, storable(reason)
    alias = alias_of(WorkflowRun)
    with transaction.atomic(using=alias):
        for run in runs:
            if end_own_run(KIND, run.pk, status, reason):
                ended += 1
                continue
            changed = disturb(
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


def wake_parent(run: WorkflowRun, payload: Mapping[str, Any], now: datetime) -> None:
    """Put the end of a child into its parent's inbox. Inserts only, so locks go one way."""
    if run.parent_id is not None:
        Signal.objects.create(
            name=run.parent_channel, payload=dict(payload), run_id=run.parent_id, sent_at=now, wake_at=now
        )
