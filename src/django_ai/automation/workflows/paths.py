"""Paths: a run that has failed or was cancelled runs its ``@on_fail`` or ``@on_cancel`` first, and ends then. Pure.

``WorkflowRun.ending`` is empty, except from the failure or cancellation on until the path has ended. It has the status
with which the run will end, the error, and the point at which the run was: the step and the visit with what woke it,
and, if its deadline has passed, what it waited for. At the end of the path the row gets these back, so a failed run is
resumed as if it had ended at once.

If the path itself fails, the run ends as failed, also one that was cancelled: its work is not undone, and an operator
finds it among all that has failed. It ends where the path has stopped, with both errors, and ``ending`` stays: resumed,
it continues the path. A path that is ended at once, on request, is no failure: the run gets the status that it was to
get.

The method runs in the visit of the point, with an idempotency key of its own. Steps that it goes to are new visits, so
after a path of several steps a failed step is retried as a new visit, too: its old key may belong to something that the
path has undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from .current_run import WakeReason
from .definitions import StepDefinition
from .models import Wait, WorkflowRun
from .statuses import WorkflowStatus

POINT = ("current_step", "visit", "attempt", "wake_reason", "wake_ref", "wake_step", "branches")
"""The columns that say where a run is."""

OF_WAIT = ("branch", "channel", "key", "match", "residual", "namespace", "then", "on_timeout")
"""The columns of a wait that are kept as they are."""


def onto_path(
    run: WorkflowRun, hook: StepDefinition, status: WorkflowStatus, error: str, now: datetime, point: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the changes that let a run enter ``hook``, with which its path begins. ``point``: the columns of ``POINT``
    that the failed attempt changes."""
    at = {name: point.get(name, getattr(run, name)) for name in POINT}
    return {
        "ending": {"status": status.value, "error": error, "seq": run.seq, **at},
        "status": WorkflowStatus.RUNNING,
        "error": error,
        "current_step": hook.name,
        "visit": at["visit"],
        "attempt": 0,
        "wake_reason": WakeReason.FIRST.value,
        "wake_ref": None,
        "wake_step": "",
        "branches": None,
        "wake_at": now,
        "lease": None,
    }


def with_waits(changes: Mapping[str, Any], waits: Iterable[Wait]) -> dict[str, Any]:
    """Return ``changes`` of ``onto_path``, which keep what the run has waited for at the point."""
    kept = [
        {
            **{name: getattr(wait, name) for name in OF_WAIT},
            "deadline": None if wait.deadline is None else wait.deadline.isoformat(),
        }
        for wait in waits
    ]
    return {**changes, "ending": {**changes["ending"], "waits": kept}} if kept else dict(changes)


def kept_waits(run: WorkflowRun, visit: int) -> tuple[Wait, ...]:
    """Return the unsaved waits of a run whose path has ended: resumed in ``visit``, it waits for them again."""
    return tuple(
        Wait(
            run_id=run.pk,
            visit=visit,
            deadline=None if each["deadline"] is None else datetime.fromisoformat(each["deadline"]),
            **{name: each[name] for name in OF_WAIT},
        )
        for each in (run.ending or {}).get("waits", ())
    )


def off_path(run: WorkflowRun, now: datetime) -> dict[str, Any]:
    """Return the changes that end a run whose path has ended."""
    ending = run.ending or {}
    point = {name: ending[name] for name in POINT}
    if run.visit != point["visit"]:
        point["visit"] = run.visit + 1
    return {**point, **_ended(_intended_status(run), original_error(run), now), "ending": None}


def broken_path(run: WorkflowRun, problem: str, now: datetime) -> dict[str, Any]:
    """Return the changes that end a run whose path has failed: as failed, where the path has stopped."""
    return _ended(WorkflowStatus.FAILED, _both_errors(run, "failed", problem), now)


def path_ended_at_once(run: WorkflowRun, reason: str, now: datetime) -> dict[str, Any]:
    """Return the changes that end a run whose path was ended on request: where the path has stopped."""
    return _ended(_intended_status(run), _both_errors(run, "was ended at once", reason), now)


def _intended_status(run: WorkflowRun) -> WorkflowStatus:
    """Return the status that the run gets at the end of its path."""
    return WorkflowStatus((run.ending or {}).get("status", WorkflowStatus.CANCELLED))


def _ended(status: WorkflowStatus, error: str, now: datetime) -> dict[str, Any]:
    return {"status": status, "error": error, "finished_at": now, "wake_at": None, "lease": None}


def original_error(run: WorkflowRun) -> str:
    """Return the error with which the path of the run began; empty for a run that is on none."""
    return str((run.ending or {}).get("error", ""))


def _both_errors(run: WorkflowRun, what: str, problem: str) -> str:
    """Return the error of a run whose path did not end itself, in the order in which the two happened. ``what``: what
    became of the path."""
    return f"{original_error(run).rstrip()}\n\nThen its {run.path} {what}:\n\n{problem}"
