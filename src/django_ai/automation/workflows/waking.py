"""Waking suspended runs: one write makes them due at their next step and withdraws their waits."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.db import models

from ..db.writer import alias_of
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from .models import Wait, WaitQuerySet, WorkflowRun, WorkflowStatus

RUNS_PER_STATEMENT = 1000
"""Runs that one statement wakes."""


def wake_runs(waits: WaitQuerySet, reason: str, ref: int, now: datetime, **changes: Any) -> int:
    """Make the runs of ``waits``, which are open, due now; return how many.

    In the caller's transaction: three statements for each ``RUNS_PER_STATEMENT`` of them.
    """
    by_step: dict[str, list[int]] = {}
    for run, step in waits.values_list("run", "then"):
        by_step.setdefault(step, []).append(run)
    woken = 0
    for step, runs in by_step.items():
        for start in range(0, len(runs), RUNS_PER_STATEMENT):
            chunk = runs[start : start + RUNS_PER_STATEMENT]
            # Repeated in the write: a run may have been woken meanwhile, and wait for something else.
            waiting = waits.filter(run=models.OuterRef("pk"), then=step)
            mine = WorkflowRun.objects.filter(models.Exists(waiting), pk__in=chunk)
            woken += wake(mine, chunk, reason, ref, step, now, **changes)
    return woken


def wake(
    runs: models.QuerySet[WorkflowRun],
    among: Collection[int],
    reason: str,
    ref: int,
    step: str,
    now: datetime,
    **changes: Any,
) -> int:
    """Make the suspended ones of ``runs`` due at ``step``, and delete their waits; return how many.

    ``among``: the primary keys of ``runs``, and perhaps of others. ``changes`` hands a run that an event wakes the
    ``depth`` of that event's chain of causes.
    """
    woken = {"status": WorkflowStatus.RUNNING, "wake_at": now, "wake_reason": str(reason), "wake_ref": ref}
    count = revoke(runs.filter(status=WorkflowStatus.SUSPENDED, lease=None), **woken, wake_step=step, **changes)
    if count:
        waits = Wait.objects.filter(run__in=among)
        (waits if count == len(among) else waits.exclude(run__status=WorkflowStatus.SUSPENDED)).delete()
        ring_after_commit(alias_of(WorkflowRun), WorkflowRun)
    return count
