"""How runs end from outside: cancelled, failed with their parent, or withdrawn before they start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from django.db import transaction

from ..conf import conf
from ..db.locks import locked
from ..db.writer import alias_of
from ..events.claims import release_all
from ..events.models import Event, EventStatus
from ..exceptions import UnknownWorkflowError
from ..queues.causation import end_own_run, note_end
from ..queues.lease import revoke
from ..queues.limits.release import release_but_life, release_from_outside
from ..queues.notifier import ring_after_commit
from ..queues.signals import row_failed
from ..values.json_text import storable
from .child_runs import wake_parent
from .current_run import KIND
from .definitions import WorkflowDefinition, any_limits, has_limits, workflow_of
from .models import Wait, WorkflowRun, WorkflowRunQuerySet
from .paths import broken_path, onto_path, path_ended_at_once
from .statuses import FINISHED, WorkflowStatus
from .window_runs import end_window


def withdraw(runs: WorkflowRunQuerySet, reason: str, now: datetime) -> int:
    """Withdraw those of ``runs`` that are planned and have not started; return how many.

    The rows stay with the reason until ``RETENTION_RUNS`` is over or they are planned again.
    """
    release_planned(runs.not_started(), now)
    return revoke(runs.not_started(), **withdrawn(reason, now))


def release_planned(runs: WorkflowRunQuerySet, now: datetime) -> None:
    """Release what planned runs, which do not start now, have acquired of their limits."""
    if any_limits():
        # The rows are locked before their slots of limits, as everywhere.
        found = dict(locked(runs).values_list("pk", "lease"))
        leased = [pk for pk, lease in found.items() if lease]  # their first step may be running
        release_from_outside(KIND, leased, now, leased_until=now + conf().LEASE)
        release_from_outside(KIND, [pk for pk in found if pk not in leased], now)


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


def end_children(run: WorkflowRun, reason: str, now: datetime) -> None:
    """Cancel the unfinished children of a run that ends, in the transaction that ends it."""
    children = WorkflowRun.objects.unfinished().filter(parent=run.pk)
    end_runs(children, WorkflowStatus.CANCELLED, f"Its parent {run} ended: {reason}", now)


def end_runs(
    runs: Iterable[WorkflowRun],
    status: WorkflowStatus,
    reason: str,
    now: datetime,
    *,
    at_once: bool = False,
    breaks_path: bool = False,
) -> int:
    """End ``runs`` and the children that they wait for, and wake their parents; return how many ended.

    A run whose class has a path to this end enters it, and ends later. A run that is on its path already is left alone.
    ``at_once``: skip the paths, and end those that have begun. ``breaks_path``: end, as failed, the runs whose path
    cannot continue.

    One transaction, which waits for no worker: a worker that leases one of them has its write refused. A run that ends
    itself within its own step ends with that step's commit.
    """
    ended, reason = 0, storable(reason)
    alias = alias_of(WorkflowRun)
    with transaction.atomic(using=alias):
        for run in runs:
            if run.ending is not None and not at_once and not breaks_path:
                continue  # on its path, or its path has ended since
            if end_own_run(KIND, run.pk, status, reason, at_once=at_once):
                ended += 1
                continue
            hooks, is_limited = hooks_of(run), has_limits(run.name)
            row: WorkflowRun | None = run
            if hooks is not None or is_limited or run.ending is not None:
                # Locked, because the row decides what becomes of it: a worker may claim it, or let it fail, just now.
                row = locked(WorkflowRun.objects.unfinished().filter(pk=run.pk)).first()
            if row is None or (row.ending is not None and not at_once and not breaks_path):
                continue
            # A run that its event has not started yet has nothing to undo.
            hook = None if hooks is None or at_once or row.awaits_start else hooks.path_to(status)
            changes: dict[str, Any] = {"status": status, "error": reason, "finished_at": now, "wake_at": None}
            if row.ending is not None:
                changes = path_ended_at_once(row, reason, now) if at_once else broken_path(row, reason, now)
            elif hook is not None:
                changes = {**onto_path(row, hook, status, reason, now, {}), "parked_at": None}
            if not revoke(WorkflowRun.objects.unfinished().filter(pk=run.pk), **changes):
                continue
            ended += 1
            note_end(KIND, run.pk)
            if is_limited:
                release = release_from_outside if changes["status"] in FINISHED else release_but_life
                release(KIND, [run.pk], now, leased_until=row.wake_at if row.lease else None)
            Wait.objects.filter(run=run.pk).delete()
            children = WorkflowRun.objects.unfinished().filter(parent=run.pk)
            if changes["status"] in FINISHED:
                _finish(row, changes, now)
            else:
                children.update(parent_channel="")  # the path does not wait for them
            why = f"Its parent {run} ended: {reason}"
            ended += end_runs(children, WorkflowStatus.CANCELLED, why, now, at_once=at_once)
        if ended:
            ring_after_commit(alias)
    return ended


def _finish(run: WorkflowRun, changes: Mapping[str, Any], now: datetime) -> None:
    """Write what follows from the end of a run, and announce a failure: of its path, or before a path that was ended at
    once."""
    end_window(run)
    release_all(KIND, run.pk)
    wake_parent(run, {"status": str(changes["status"]), "data": run.data, "error": changes["error"]}, now)
    if changes["status"] == WorkflowStatus.FAILED:
        run.__dict__.update(changes)
        report = partial(row_failed.send_robust, WorkflowRun, row=run, reason=changes["error"])
        transaction.on_commit(report, using=alias_of(WorkflowRun), robust=True)


def hooks_of(run: WorkflowRun) -> WorkflowDefinition | None:
    """Return the definition of the run if it has ``@on_fail`` or ``@on_cancel``. A run whose code this process does not
    have ends at once."""
    try:
        definition = workflow_of(run)
    except UnknownWorkflowError:
        return None
    return definition if definition.hooks else None
