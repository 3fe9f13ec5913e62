"""What the history keeps of a run before each visit of a step: its Context, what had woken it, and its claims.

It is written with the commit of the first attempt of a visit (``StepExecution.before``), so it costs no statement.
"""

from __future__ import annotations

import json
from typing import Any

from ..conf import conf
from ..events.models import EventClaim
from .current_run import KIND
from .models import WorkflowRun


def is_kept(run: WorkflowRun) -> bool:
    """Return whether the attempt that begins is the first of a visit, and not on a path."""
    return run.ending is None and (run.has_no_context or not (run.attempt or run.deferrals))


def before_visit(run: WorkflowRun, data: Any, size: int | None, claims: list[int]) -> dict[str, Any] | None:
    """Return what is kept of a run that enters a visit with the Context ``data``, or None if that is too large.
    ``size``: that of ``data`` as JSON, if it is known. ``claims``: what it held then."""
    limit = conf().HISTORY_CONTEXT_BYTES
    if limit == 0 or (len(json.dumps(data, separators=(",", ":"))) if size is None else size) > limit:
        return None
    found = {"data": data, "version": run.version, "step": run.current_step}
    if run.wake_reason != "first":
        found["reason"] = run.wake_reason
    if run.wake_ref is not None:
        found["ref"] = run.wake_ref
    if run.wake_step:
        found["wake_step"] = run.wake_step
    if run.branches is not None:
        found["branches"] = run.branches
    if claims:
        found["claims"] = claims
    return found


def claims_of(run: WorkflowRun) -> list[int]:
    """Return the primary keys of the claims that the run holds: one query, if it has ever held one."""
    if not run.holds_claims:
        return []
    return list(EventClaim.objects.filter(owner_kind=KIND, owner_id=run.pk).values_list("pk", flat=True))
