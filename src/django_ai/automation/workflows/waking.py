"""Waking suspended runs: one write makes them due at their next step and withdraws their waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime

from django.db import models

from ..db.writer import alias_of
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from .branches import RUNS_PER_STATEMENT, Arrival, collect, winner, withdraw_children
from .current_run import WakeReason
from .models import Wait, WaitQuerySet, WorkflowRun
from .statuses import WorkflowStatus


def wake_runs(waits: WaitQuerySet, arrival: Arrival, now: datetime) -> int:
    """Let the runs of ``waits``, which are open, receive ``arrival``; return how many have. They are due now, except
    those that wait for all of several branches and have not received the last.

    In the caller's transaction: three statements for each ``RUNS_PER_STATEMENT`` of them.
    """
    by_step: dict[tuple[str, str], list[int]] = defaultdict(list)
    collecting: dict[int, list[int]] = defaultdict(list)
    branches: list[tuple[int, int, str, str]] = []
    for pk, run, step, branch, reason in waits.values_list("pk", "run", "then", "branch", "run__wake_reason"):
        if not branch:
            by_step[step, ""].append(run)
        elif reason == WakeReason.ALL:
            collecting[run].append(pk)
        else:
            branches.append((pk, run, step, branch))
    for _, run, step, branch in sorted(branches):  # of two branches that it fits, the first one wins
        by_step[step, branch].append(run)
    woken = 0
    for (step, branch), runs in by_step.items():
        for start in range(0, len(runs), RUNS_PER_STATEMENT):
            chunk = runs[start : start + RUNS_PER_STATEMENT]
            # Repeated in the write: a run may have been woken meanwhile, and wait for something else.
            waiting = waits.filter(run=models.OuterRef("pk"), then=step, branch=branch)
            mine = WorkflowRun.objects.filter(models.Exists(waiting), pk__in=chunk)
            woken += wake(mine, chunk, arrival, step, now, branch=branch)
    return woken + (collect(collecting, arrival, now) if collecting else 0)


def wake(
    runs: models.QuerySet[WorkflowRun],
    among: Collection[int],
    arrival: Arrival,
    step: str,
    now: datetime,
    *,
    branch: str = "",
) -> int:
    """Make the suspended ones of ``runs`` due at ``step``, and delete their waits; return how many.

    ``among``: the primary keys of ``runs``, and perhaps of others. ``branch``: the branch of ``wait_any`` that wins.
    """
    woken = {"status": WorkflowStatus.RUNNING, "wake_at": now, "wake_step": step, **arrival.changes}
    if branch:
        woken["branches"] = winner(branch)
    count = revoke(
        runs.filter(status=WorkflowStatus.SUSPENDED, lease=None),
        wake_reason=arrival.reason.value,
        wake_ref=arrival.ref,
        **woken,
    )
    if count:
        waits = Wait.objects.of_visits().filter(run__in=among)
        theirs = waits if count == len(among) else waits.exclude(run__status=WorkflowStatus.SUSPENDED)
        if branch:
            withdraw_children(theirs.exclude(branch=branch), f"the branch {branch!r} came first", now)
        theirs.delete()
        ring_after_commit(alias_of(WorkflowRun), WorkflowRun)
    return count
