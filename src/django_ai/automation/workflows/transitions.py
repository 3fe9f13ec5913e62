"""Outcomes become changes of the run: one ``match``, no exceptions as control flow, no database.

Each function returns the columns that the fenced commit of the try writes. ``None`` is left out, and unchanged columns
too, so that a ``goto`` rewrites no indexed column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from ..conf import conf
from ..exceptions import ContextError, OutcomeError
from ..queues.cause import REST
from ..queues.contexts import merge
from ..queues.jsontext import storable
from .context import WakeReason
from .definitions import StepDefinition, WorkflowDefinition
from .models import SUBFLOW, WorkflowRun, WorkflowStatus
from .models import Wait as WaitRow
from .outcomes import Complete, Fail, Goto, Outcome, Sleep, Subflow, Wait
from .waits import registration


@dataclass(frozen=True, slots=True)
class Moment:
    """When a try began and when it ended."""

    started: datetime
    finished: datetime


@dataclass(frozen=True, slots=True)
class Transition:
    """What an outcome changes on the run, and what the run waits for then."""

    changes: dict[str, Any]
    waits: tuple[WaitRow, ...] = ()


def name_of(outcome: Any) -> str:
    """Return what the history calls an outcome."""
    match outcome:
        case Goto():
            return "goto"
        case Sleep():
            return "sleep"
        case Wait():
            return "wait"
        case Complete():
            return "complete"
        case Fail():
            return "fail"
        case Subflow():
            return "subflow"
    return "error"


def transition(
    run: WorkflowRun,
    definition: WorkflowDefinition,
    step: StepDefinition,
    outcome: Outcome,
    context: BaseModel,
    moment: Moment,
    *,
    yielding: bool,
) -> Transition:
    """Return what ``outcome`` changes. ``yielding``: the worker's share of time is used, so a goto lets the lease go.

    Raises ``OutcomeError`` for what is no outcome, ``UnknownStepError`` for a target that does not exist, and
    ``ContextError`` for fields that the Context does not have.
    """
    let_go: dict[str, Any] = {"lease": None}
    match outcome:
        case Goto(target):
            entered = definition.step(target)
            if entered.wait is not None:
                return _suspend(run, definition, entered.name, entered.wait, context, moment)
            changes = _enter(target, WakeReason.FIRST, WorkflowStatus.RUNNING)
            return Transition(changes | ({"wake_at": moment.finished} | let_go if yielding else {}))
        case Sleep(duration, until, then):
            target = definition.step(then).name if then else step.name
            wake_at = until or moment.finished + (duration or timedelta(0))
            rested = {"depth": 0} if run.depth and wake_at - moment.finished >= REST else {}
            entered_at = {"wake_at": wake_at} | rested | let_go
            return Transition(_enter(target, WakeReason.TIMER, WorkflowStatus.WAITING) | entered_at)
        case Wait():
            return _suspend(run, definition, step.name, outcome, context, moment)
        case Subflow(then=then):
            wait = Wait(subflow_channel(run), then=then)
            return _suspend(run, definition, step.name, wait, context, moment)
        case Complete(fields):
            unknown = [name for name in fields if name not in type(context).model_fields]
            if unknown:
                raise ContextError(
                    f"{definition.name}.{step.name} returned complete({', '.join(unknown)}=...), and its Context has "
                    f"no such field. It has: {', '.join(type(context).model_fields)}."
                )
            if fields:
                merge(context, fields, f"complete() of {definition.name}.{step.name}")
            return Transition(ended(WorkflowStatus.COMPLETED, "", moment.finished))
        case Fail(reason):
            return Transition(ended(WorkflowStatus.FAILED, storable(reason), moment.finished))
    raise OutcomeError(
        f"{definition.name}.{step.name} returned {outcome!r:.200}, which is no outcome. A step returns goto(...), "
        "sleep(...), wait(...), wait_for_event(...), complete(...) or fail(...)."
        + (" Did you forget `return complete()`?" if outcome is None else "")
    )


def subflow_channel(run: WorkflowRun) -> str:
    return f"{SUBFLOW}:{run.pk}:{run.visit}"


def _enter(step: str, reason: WakeReason, status: WorkflowStatus) -> dict[str, Any]:
    return {"current_step": step, "wake_reason": reason.value, "wake_ref": None, "status": status, "attempt": 0}


def _suspend(
    run: WorkflowRun, definition: WorkflowDefinition, step: str, wait: Wait, context: BaseModel, moment: Moment
) -> Transition:
    for target in (wait.then, wait.on_timeout):
        if target is not None:
            definition.step(target)
    if wait.namespace is None:
        wait = replace(wait, namespace=definition.namespace)
    # Due soon, in case this worker dies before it has looked for what is there already.
    changes = _enter(step, WakeReason.FIRST, WorkflowStatus.SUSPENDED)
    changes |= {"lease": None, "wake_at": moment.finished + conf().LEASE}
    return Transition(changes, (registration(run, step, wait, context, moment.finished),))


def ended(status: WorkflowStatus, error: str, now: datetime) -> dict[str, Any]:
    """Return the changes that end a run."""
    return {"status": status, "error": error, "finished_at": now, "wake_at": None, "lease": None}


def retried(
    definition: WorkflowDefinition, step: StepDefinition, attempt: int, error: str, now: datetime
) -> Mapping[str, Any] | None:
    """Return the changes after try number ``attempt`` failed, or None if the budget is spent."""
    delay = definition.retry_of(step).delay(attempt)
    if delay is None:
        return None
    return {
        "attempt": attempt,
        "status": WorkflowStatus.WAITING,
        "error": error,
        "wake_at": now + delay,
        "lease": None,
    }
