"""``engine.rewind``: a run continues at an earlier visit of a step, with the Context that it had before that visit.

The history row of a visit's first attempt keeps what the run was then (``StepExecution.before``): its Context, and what
had woken it. A rewind writes that to the run as a new visit. The rows of the visits in between stay: they are the
history, and the record of what the run has consumed, so it waits for new signals and events.

What belongs to the present is withdrawn in the same transaction: its waits, its unfinished child runs with their ends,
and the claims that it did not hold yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db.models import Q

from ..events.claims import release_all
from ..events.models import Event, EventClaim
from ..exceptions import DecryptionError, DefinitionError, StateError
from ..queues.lease import revoke
from ..queues.limits.release import release_but_life
from ..state.encryption import check_readable
from ..state.versions import restore
from .current_run import KIND, WakeReason
from .definitions import has_limits, workflow_of
from .ending import end_runs
from .models import Signal, StepExecution, WorkflowRun
from .repairing import from_outside, record, refuse
from .statuses import ACTIONS, REWOUND, STARTING, WorkflowStatus
from .wait_keys import SUBFLOW, subflow_channel

MAX_LISTED_VISITS = 12


def rewind(run: WorkflowRun, now: datetime, visit: int, again: bool, reason: str) -> None:
    """Let a locked run continue at ``visit``."""
    what = f"engine.rewind({run}, visit={visit!r})"
    if type(visit) is not int:
        raise DefinitionError(f"{what}: visit must be a number, as in run.steps.last().visit.")
    _check_end(run, what)
    first = _first_of(run, visit, what)
    before = first.before
    try:
        check_readable(before, what)
    except DecryptionError as error:
        raise StateError(str(error), run) from error
    step = before["step"] or first.step
    _check_code(run, before, first.step, what)
    _check_wake(run, before, what)
    _check_end_of_claims(run, before, what)
    child = None if again else _completed_child(run, visit)
    if child is not None:
        raise refuse(
            what,
            run,
            f"has started {child} since then, which is completed; run again, its step may start a second one. Choose a "
            "later visit, or give again=True.",
        )
    _withdraw(run, before, now)
    deadline: dict[str, Any] = {}
    if run.deadline is not None and run.deadline <= now:
        deadline["deadline"] = run.renewed_deadline(now)
    text = f"Rewound from visit {run.visit} to visit {visit} ({first.step})"
    from_outside(
        run,
        status=WorkflowStatus.RUNNING,
        current_step=step,
        visit=run.visit + 1,
        data=before["data"],
        version=before["version"],
        wake_reason=before.get("reason", WakeReason.FIRST.value),
        wake_ref=before.get("ref"),
        wake_step=before.get("wake_step", ""),
        branches=before.get("branches"),
        ending=None,
        attempt=0,
        deferrals=0,
        failed_evaluations=0,
        progress=None,
        error="",
        holds_claims=bool(before.get("claims")),
        finished_at=None,
        parked_at=None,
        wake_at=now,
        **deadline,
    )
    record(run, REWOUND, text, reason, now)


def _check_end(run: WorkflowRun, what: str) -> None:
    """Raise ``StateError`` for a run that has ended, or is about to, if its end cannot be taken back."""
    if run.status == WorkflowStatus.WITHDRAWN or run.awaits_start:
        raise refuse(what, run, f"is {run.status} and has not started. It starts at the date of its event.")
    if run.ending is not None and not (run.status == WorkflowStatus.FAILED and run.path == "@on_fail"):
        raise refuse(
            what,
            run,
            f"is {run.status}, on the path of its {run.path}, which undoes what it did. Let the path end "
            "(engine.resume() if it has stopped), and use engine.fork().",
        )
    if run.status not in (WorkflowStatus.COMPLETED, WorkflowStatus.CANCELLED):
        return
    if run.parent_id is not None and run.parent_channel:
        raise refuse(
            what, run, f"is {run.status}, and its parent {run.parent} has been told. Use engine.fork(), or the parent."
        )
    if run.status == WorkflowStatus.CANCELLED and (hook := _hook_of(run)):
        raise refuse(
            what, run, f"was cancelled, and its @on_cancel {hook!r} has undone what it did. Use engine.fork()."
        )


def _hook_of(run: WorkflowRun) -> str:
    """Return the name of the ``@on_cancel`` that a run has entered, or an empty string."""
    hook = workflow_of(run).on_cancel
    return hook.name if hook is not None and run.steps.filter(step=hook.name).exists() else ""


def _first_of(run: WorkflowRun, visit: int, what: str) -> StepExecution:
    """Return the first attempt of a visit, which keeps what the run was before it. Raises ``StateError``."""
    attempts = run.steps.exclude(outcome__in=[StepExecution.ARRIVED, *ACTIONS])
    kept = attempts.filter(before__isnull=False)
    found: StepExecution | None = kept.filter(visit=visit).order_by("pk").first()
    if found is not None:
        return found
    why = f"has no visit {visit} in its history"
    if attempts.filter(visit=visit).exists():
        why = f"has no Context of visit {visit} in its history (it was larger than HISTORY_CONTEXT_BYTES, or on a path)"
    known = list(kept.order_by("-visit").values_list("visit", "step").distinct()[:MAX_LISTED_VISITS])
    listed = ", ".join(f"{number} ({step})" for number, step in sorted(set(known)))
    raise refuse(what, run, f"{why}. It can be rewound to: {listed or 'none; use engine.fork()'}.")


def _check_code(run: WorkflowRun, before: Mapping[str, Any], step: str, what: str) -> None:
    """Raise ``CodeError`` unless this code has the step, and the Context still fits."""
    then = WorkflowRun(pk=run.pk, name=run.name, version=before["version"], data=before["data"])
    definition = workflow_of(then)
    definition.step(step)
    restore(definition, before["data"], before["version"], what)


def _check_wake(run: WorkflowRun, before: Mapping[str, Any], what: str) -> None:
    """Raise ``StateError`` if the signal or event that woke the visit was removed, so that it cannot be received."""
    model = {WakeReason.SIGNAL: Signal, WakeReason.EVENT: Event}.get(before.get("reason", ""))
    ref = before.get("ref")
    if model is not None and ref is not None and not model._default_manager.filter(pk=ref).exists():
        by = f"{model._meta.verbose_name} #{ref}"
        raise refuse(what, run, f"was woken by the {by} then, which was removed. Choose another visit.")


def _check_end_of_claims(run: WorkflowRun, before: Mapping[str, Any], what: str) -> None:
    """Raise ``StateError`` if the run had claims before the visit and has lost one with its end."""
    if not run.is_finished or run.status == WorkflowStatus.FAILED or not before.get("claims"):
        return
    raise refuse(
        what, run, f"is {run.status}, and the claims that it held before that visit ended with it. Use engine.fork()."
    )


def _completed_child(run: WorkflowRun, visit: int) -> WorkflowRun | None:
    """Return a child that was started on ``visit`` or later and has completed, or None."""
    started = Q(pk__in=())
    for number, outcome in run.steps.filter(visit__gte=visit, outcome__in=STARTING).values_list("visit", "outcome"):
        channel = subflow_channel(run.pk, number)
        started |= Q(parent_channel=channel) if outcome == "subflow" else Q(parent_channel__startswith=f"{channel}:")
    return WorkflowRun.objects.filter(started, parent=run.pk, status=WorkflowStatus.COMPLETED).last()


def _withdraw(run: WorkflowRun, before: Mapping[str, Any], now: datetime) -> None:
    """Withdraw what the run waits for and holds at present."""
    if has_limits(run.name):
        release_but_life(KIND, [run.pk], now, leased_until=run.wake_at if run.lease else None)
    run.waits.of_visits().delete()
    children = WorkflowRun.objects.unfinished().filter(parent=run.pk)
    pks = list(children.values_list("pk", flat=True))
    if pks:
        mine = WorkflowRun.objects.filter(pk__in=pks)
        mine.update(parent_channel="")  # its end is not reported
        end_runs(mine, WorkflowStatus.CANCELLED, f"Its parent {run} was rewound.", now)
    ends = Signal.objects.filter(run=run.pk, name__startswith=f"{SUBFLOW}:", consumed_at=None)
    revoke(ends, consumed_at=now, delivered_at=now, wake_at=None)
    if not before.get("claims"):
        release_all(KIND, run.pk)
        return
    EventClaim.objects.filter(owner_kind=KIND, owner_id=run.pk).exclude(pk__in=before["claims"]).delete()
