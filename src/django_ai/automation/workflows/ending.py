"""How runs are ended from outside: cancelled by a person or by what they wait for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from django.db import transaction

from ..queues.executor import ring_after_commit
from ..queues.jsontext import storable
from ..queues.lease import alias_of, disturb
from .context import end_own_run
from .models import WorkflowRun, WorkflowStatus
from .waits import NOT_WAITING, wake_parent


def end_runs(runs: Iterable[WorkflowRun], status: WorkflowStatus, reason: str, now: datetime) -> int:
    """End ``runs`` and the children that they wait for, and wake their parents; return how many ended.

    One transaction. A worker that has one of them finds its write refused. Returns at once: nobody is waited for. A run
    that is ended from within its own step ends with that step's commit.
    """
    ended, reason = 0, storable(reason)
    alias = alias_of(WorkflowRun)
    with transaction.atomic(using=alias):
        for run in runs:
            if end_own_run(run.pk, status, reason):
                ended += 1
                continue
            changed = disturb(
                WorkflowRun.objects.unfinished().filter(pk=run.pk),
                status=status,
                error=reason,
                finished_at=now,
                wake_at=None,
                **NOT_WAITING,
            )
            if changed:
                ended += 1
                wake_parent(run, {"status": status.value, "data": run.data, "error": reason}, now)
                children = WorkflowRun.objects.unfinished().filter(parent=run.pk)
                ended += end_runs(children, status, f"Its parent {run} ended: {reason}", now)
        if ended:
            ring_after_commit(alias)
    return ended
