"""``decide``: the result of an attempt becomes the changes of its run.

Pure: no database, no clock, no project code. The session runs the step, calls ``decide``, and commits the decision: the
columns of the fenced write, and the rows that commit with it. Unchanged columns are left out, so a ``goto`` rewrites no
indexed column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from ..conf import conf
from ..exceptions import ContextError, OutcomeError, PayloadError
from ..queues.causation import CHAIN_BREAK
from ..queues.parking import parking_changes
from ..values.failures import Raised
from ..values.json_text import storable
from .current import WakeReason
from .definitions import StepDefinition, WorkflowDefinition
from .models import FINISHED, WorkflowRun, WorkflowStatus
from .outcomes import Complete, Fail, Goto, Outcome, Sleep, Subflow, Wait
from .wait_keys import subflow_channel


@dataclass(frozen=True, slots=True)
class State:
    """The input of a decision, beside the result: the run as it was claimed, and its attempt."""

    run: WorkflowRun
    definition: WorkflowDefinition
    step: StepDefinition
    reason: WakeReason
    started: datetime
    finished: datetime
    depth: int = 0
    waits_first: bool = False
    """Whether the step is not entered yet, because its ``@wait_for_event`` waits first."""
    took_payload: bool = False
    """Whether the payload that woke the run is merged into the Context."""
    is_budget_spent: bool = False
    """Whether the worker's ``DRAIN_BUDGET`` is spent, so that a ``goto`` releases the run."""
    holds_claims: bool = False


@dataclass(frozen=True, slots=True)
class Returned:
    """The attempt returned. ``ending``: the status and the reason with which the code has ended its own run."""

    outcome: Outcome
    context: type[BaseModel]
    ending: tuple[WorkflowStatus, str] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The changes of the run, and what commits with them."""

    changes: Mapping[str, Any]
    outcome: str = "error"
    """The outcome in the history."""
    error: str = ""
    """The error in the history."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Values that are merged into the Context before it is stored."""
    wait: Wait | None = None
    """What the run waits for. It continues at ``changes["current_step"]``."""
    child: Subflow | None = None
    """The child run to start."""

    @property
    def ends(self) -> bool:
        return self.changes["status"] in FINISHED

    @property
    def failure(self) -> str | None:
        """The error of a run that has failed finally, or None."""
        return str(self.changes["error"]) if self.changes["status"] == WorkflowStatus.FAILED else None


def decide(state: State, result: Returned | Raised) -> Decision:
    """Return the changes of the run.

    Raises ``OutcomeError`` if the step returned no outcome, ``UnknownStepError`` for a target that does not exist, and
    ``ContextError`` for fields that the Context does not have. The attempt then fails with that error.
    """
    if isinstance(result, Raised):
        return _failed(state, result)
    run = state.run
    if result.ending is not None:
        decision = Decision(ended(*result.ending, state.finished))
    else:
        decision = _after(state, result.outcome, result.context)
    changes: dict[str, Any] = {"current_step": state.step.name, "visit": run.visit + 1}
    if state.depth != run.depth:
        changes["depth"] = state.depth
    if run.started_at is None:
        changes |= _start_changes(state)
    if run.wake_step:
        changes["wake_step"] = ""
    if state.holds_claims and not run.holds_claims:
        changes["holds_claims"] = True
    if run.error:
        changes["error"] = ""
    changes |= decision.changes
    return replace(decision, changes=changes, outcome=name_of(result.outcome), error=changes.get("error", ""))


def _start_changes(state: State) -> dict[str, Any]:
    """Return the changes of a run that has a Context for the first time. A planned run keeps its new position."""
    position = {"position": state.run.position} if state.run.planned else {}
    return {"started_at": state.run.started_at or state.started, **position}


def _after(state: State, outcome: Outcome, context: type[BaseModel]) -> Decision:
    definition, step, finished = state.definition, state.step, state.finished
    match outcome:
        case Goto(target):
            entered = definition.step(target)
            if entered.wait is not None:
                return _suspended(state, entered.name, entered.wait)
            changes = _enter(target, WakeReason.FIRST, WorkflowStatus.RUNNING)
            return Decision(changes | ({"wake_at": finished, "lease": None} if state.is_budget_spent else {}))
        case Sleep(duration, until, then):
            target = definition.step(then).name if then else step.name
            wake_at = until or finished + (duration or timedelta(0))
            broken = {"depth": 0} if state.run.depth and wake_at - finished >= CHAIN_BREAK else {}
            entered_at = {"wake_at": wake_at, "lease": None} | broken
            return Decision(_enter(target, WakeReason.TIMER, WorkflowStatus.WAITING) | entered_at)
        case Wait():
            return _suspended(state, step.name, outcome)
        case Subflow(then=then):
            channel = subflow_channel(state.run.pk, state.run.visit)
            return replace(_suspended(state, step.name, Wait(channel, then=then)), child=outcome)
        case Complete(fields):
            unknown = [name for name in fields if name not in context.model_fields]
            if unknown:
                raise ContextError(
                    f"{definition.name}.{step.name} returned complete({', '.join(unknown)}=...), and its Context has "
                    f"no such field. It has: {', '.join(context.model_fields)}."
                )
            return Decision(ended(WorkflowStatus.COMPLETED, "", finished), fields=fields)
        case Fail(reason):
            return Decision(ended(WorkflowStatus.FAILED, storable(reason), finished))
    raise OutcomeError(
        f"{definition.name}.{step.name} returned {outcome!r:.200}, which is not an outcome. A step returns goto(...), "
        "sleep(...), wait(...), wait_for_event(...), complete(...) or fail(...)."
        + (" Did you forget `return complete()`?" if outcome is None else "")
    )


def _failed(state: State, raised: Raised) -> Decision:
    """Retry the step after its backoff, or end the run. The step's changes to its Context are kept."""
    run, error, now = state.run, raised.text, state.finished
    changes: dict[str, Any] = {}
    if not state.waits_first:
        changes |= {"current_step": state.step.name, "wake_reason": state.reason.value}
    if state.holds_claims:
        changes["holds_claims"] = (
            True  # claimed outside a transaction (atomic=False), so the claim outlives the failure
        )
    if raised.data is not None:
        # A run has started once it has stored a Context; without one its next attempt makes it again.
        changes |= {"data": raised.data, **_start_changes(state)}
        if run.wake_step and state.took_payload:
            changes["wake_step"] = ""
    delay = raised.delay(state.definition.retry_of(state.step), run.attempt + 1)
    if isinstance(raised.error, PayloadError):
        # The sender's mistake: an operator can repair the Context or drop the payload, and resume.
        changes |= parking_changes(run, error, now, awaiting_deploy=False)
    elif delay is None:
        changes |= {"attempt": run.attempt + 1, **ended(WorkflowStatus.FAILED, error, now)}
    else:
        changes |= {"attempt": run.attempt + 1, "status": WorkflowStatus.WAITING, "error": error}
        changes |= {"wake_at": now + delay, "lease": None}
    return Decision(changes, error=error)


def _enter(step: str, reason: WakeReason, status: WorkflowStatus) -> dict[str, Any]:
    return {"current_step": step, "wake_reason": reason.value, "wake_ref": None, "status": status, "attempt": 0}


def _suspended(state: State, step: str, wait: Wait) -> Decision:
    for target in (wait.then, wait.on_timeout):
        if target is not None:
            state.definition.step(target)
    if wait.namespace is None:
        wait = replace(wait, namespace=state.definition.namespace)
    # Due soon, in case this worker dies before it has looked for what has arrived already.
    changes = _enter(step, WakeReason.FIRST, WorkflowStatus.SUSPENDED)
    return Decision(changes | {"lease": None, "wake_at": state.finished + conf().LEASE}, wait=wait)


def ended(status: WorkflowStatus, error: str, now: datetime) -> dict[str, Any]:
    """Return the changes that end a run."""
    return {"status": status, "error": error, "finished_at": now, "wake_at": None, "lease": None}


def name_of(outcome: Any) -> str:
    """Return the name of an outcome in the history."""
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
