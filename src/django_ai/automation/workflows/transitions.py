"""``decide``: what the attempt of a step gave becomes the changes of its run.

Pure: no database, no clock, no code of the project. The runner tries, asks ``decide``, and records what that says: the
columns of the fenced commit, and what commits with them. Unchanged columns are left out, so that a ``goto`` rewrites no
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
    """What a decision depends on, beside what the attempt gave: the run as it was claimed, and its attempt."""

    run: WorkflowRun
    definition: WorkflowDefinition
    step: StepDefinition
    reason: WakeReason
    started: datetime
    finished: datetime
    depth: int = 0
    waits_first: bool = False
    """Whether the step is not entered, because what its ``@wait_for_event`` asks for has still to come."""
    took_payload: bool = False
    """Whether the payload of what woke the run is merged into the Context."""
    is_budget_spent: bool = False
    """Whether the worker's share of time is used, so that a ``goto`` gives the run back."""
    holds_claims: bool = False


@dataclass(frozen=True, slots=True)
class Returned:
    """What an attempt gave that returned. ``ending``: how the code has ended its own run by itself, and why."""

    outcome: Outcome
    context: type[BaseModel]
    ending: tuple[WorkflowStatus, str] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the run."""

    changes: Mapping[str, Any]
    outcome: str = "error"
    """What the history calls it."""
    error: str = ""
    """What the history says of it."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What is merged into the Context before that is stored."""
    wait: Wait | None = None
    """What the run waits for now, and goes on with ``changes["current_step"]``."""
    child: Subflow | None = None
    """Which child run starts."""

    @property
    def ends(self) -> bool:
        return self.changes["status"] in FINISHED

    @property
    def failure(self) -> str | None:
        """Why the run has failed for good, if it has."""
        return str(self.changes["error"]) if self.changes["status"] == WorkflowStatus.FAILED else None


def decide(state: State, gave: Returned | Raised) -> Decision:
    """Return what becomes of the run.

    Raises ``OutcomeError`` for what is no outcome, ``UnknownStepError`` for a target that does not exist, and
    ``ContextError`` for fields that the Context does not have: then the attempt has raised that.
    """
    if isinstance(gave, Raised):
        return _failed(state, gave)
    run = state.run
    if gave.ending is not None:
        decision = Decision(ended(*gave.ending, state.finished))
    else:
        decision = _after(state, gave.outcome, gave.context)
    changes: dict[str, Any] = {"current_step": state.step.name, "visit": run.visit + 1}
    if state.depth != run.depth:
        changes["depth"] = state.depth
    if run.started_at is None:
        changes |= _begun(state)
    if run.wake_step:
        changes["wake_step"] = ""
    if state.holds_claims and not run.holds_claims:
        changes["holds_claims"] = True
    if run.error:
        changes["error"] = ""
    changes |= decision.changes
    return replace(decision, changes=changes, outcome=name_of(gave.outcome), error=changes.get("error", ""))


def _begun(state: State) -> dict[str, Any]:
    """Return the changes of a run that has come to have a Context. A planned one listens from its date on."""
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
            rested = {"depth": 0} if state.run.depth and wake_at - finished >= CHAIN_BREAK else {}
            entered_at = {"wake_at": wake_at, "lease": None} | rested
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
        f"{definition.name}.{step.name} returned {outcome!r:.200}, which is no outcome. A step returns goto(...), "
        "sleep(...), wait(...), wait_for_event(...), complete(...) or fail(...)."
        + (" Did you forget `return complete()`?" if outcome is None else "")
    )


def _failed(state: State, raised: Raised) -> Decision:
    """Try the step again after its backoff, or end the run. What the step has changed in its Context is kept."""
    run, text, now = state.run, raised.text, state.finished
    changes: dict[str, Any] = {}
    if not state.waits_first:
        changes |= {"current_step": state.step.name, "wake_reason": state.reason.value}
    if state.holds_claims:
        changes["holds_claims"] = True  # held outside a transaction (atomic=False), it outlives the failure
    if raised.data is not None:
        # A run has begun once it has stored a Context; without one its next try makes it anew.
        changes |= {"data": raised.data, **_begun(state)}
        if run.wake_step and state.took_payload:
            changes["wake_step"] = ""
    delay = raised.delay(state.definition.retry_of(state.step), run.attempt + 1)
    if isinstance(raised.error, PayloadError):
        # Somebody else's mistake: a person can mend the Context or drop the payload, and resume.
        changes |= parking_changes(run, text, now, awaiting_deploy=False)
    elif delay is None:
        changes |= {"attempt": run.attempt + 1, **ended(WorkflowStatus.FAILED, text, now)}
    else:
        changes |= {"attempt": run.attempt + 1, "status": WorkflowStatus.WAITING, "error": text}
        changes |= {"wake_at": now + delay, "lease": None}
    return Decision(changes, error=text)


def _enter(step: str, reason: WakeReason, status: WorkflowStatus) -> dict[str, Any]:
    return {"current_step": step, "wake_reason": reason.value, "wake_ref": None, "status": status, "attempt": 0}


def _suspended(state: State, step: str, wait: Wait) -> Decision:
    for target in (wait.then, wait.on_timeout):
        if target is not None:
            state.definition.step(target)
    if wait.namespace is None:
        wait = replace(wait, namespace=state.definition.namespace)
    # Due soon, in case this worker dies before it has looked for what is there already.
    changes = _enter(step, WakeReason.FIRST, WorkflowStatus.SUSPENDED)
    return Decision(changes | {"lease": None, "wake_at": state.finished + conf().LEASE}, wait=wait)


def ended(status: WorkflowStatus, error: str, now: datetime) -> dict[str, Any]:
    """Return the changes that end a run."""
    return {"status": status, "error": error, "finished_at": now, "wake_at": None, "lease": None}


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
