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

CHUNK = 1000
"""Runs that are woken in one statement."""


def wake_runs(waits: WaitQuerySet, reason: str, ref: int, now: datetime, **changes: Any) -> int:
    """Make due the runs of ``waits``, which are open; return how many were. In the caller's transaction: three
    statements for each thousand of them."""
    by_step: dict[str, list[int]] = {}
    for run, step in waits.values_list("run", "then"):
        by_step.setdefault(step, []).append(run)
    woken = 0
    for step, runs in by_step.items():
        for start in range(0, len(runs), CHUNK):
            chunk = runs[start : start + CHUNK]
            # Asked once more in the write: one may have been woken, and wait for something else by now.
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
    """Make ``runs`` due at ``step``, and withdraw what they waited for; return how many were suspended. ``among``:
    primary keys, all of theirs. Who waited for an event goes on with its chain of causes (``depth``)."""
    woken = {"status": WorkflowStatus.RUNNING, "wake_at": now, "wake_reason": str(reason), "wake_ref": ref}
    count = revoke(runs.filter(status=WorkflowStatus.SUSPENDED, lease=None), **woken, wake_step=step, **changes)
    if count:
        gone = Wait.objects.filter(run__in=among)
        (gone if count == len(among) else gone.exclude(run__status=WorkflowStatus.SUSPENDED)).delete()
        ring_after_commit(alias_of(WorkflowRun), WorkflowRun)
    return count
