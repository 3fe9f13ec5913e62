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
from ..queues.causation import CHAIN_BREAK, breaks_chain
from ..queues.parking import parking_changes
from ..values.clock import later
from ..values.failures import Raised
from ..values.json_text import storable
from .current_run import WakeReason
from .definitions import StepDefinition, WorkflowDefinition
from .models import Wait as WaitRow
from .models import WorkflowRun
from .outcomes import Choice, Complete, Fail, Goto, Outcome, Sleep, Subflow, Wait
from .paths import broken_path, kept_waits, off_path, onto_path, original_error, path_ended_at_once
from .statuses import DEFERRED, FINISHED, WorkflowStatus
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
    has_context: bool = True
    """Whether there is a Context. A run that could not make one enters its ``@on_fail`` without."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The attempt returned. ``ending``: the status and the reason with which the code has ended its own run."""

    outcome: Outcome
    context: type[BaseModel]
    ending: tuple[WorkflowStatus, str] | None = None
    ends_at_once: bool = False
    """Whether that end skips ``@on_fail`` and ``@on_cancel``."""


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
    wait: Wait | Choice | None = None
    """What the run waits for. It continues at ``changes["current_step"]``."""
    child: Subflow | None = None
    """The child run to start."""
    ending: tuple[WorkflowStatus, str] | None = None
    """The status and the reason with which the run ends by this attempt, if it fails, is cancelled or leaves its
    path."""
    failure: str | None = None
    """The error of a run that has failed finally, or whose path has; or None."""
    kept_waits: tuple[WaitRow, ...] = ()
    """What a run that leaves its path waits for again if it is resumed."""

    @property
    def ends(self) -> bool:
        return self.changes["status"] in FINISHED


def decide(state: State, result: Returned | Raised) -> Decision:
    """Return the changes of the run.

    Raises ``OutcomeError`` if the step returned no outcome, ``UnknownStepError`` for a target that does not exist, and
    ``ContextError`` for fields that the Context does not have. The attempt then fails with that error.
    """
    if isinstance(result, Raised):
        return _failed(state, result)
    run = state.run
    if result.ending is not None:
        decision = Decision({}, ending=result.ending)
    else:
        decision = _after(state, result.outcome, result.context)
    changes: dict[str, Any] = {"current_step": state.step.name, "visit": run.visit + 1}
    if state.depth != run.depth:
        changes["depth"] = state.depth
    if run.started_at is None and state.has_context:
        changes |= _start_changes(state)
    if run.wake_step:
        changes["wake_step"] = ""
    if run.branches is not None and decision.ending is None:
        changes["branches"] = None  # a failed run may be resumed, and reads them again
    if state.holds_claims and not run.holds_claims:
        changes["holds_claims"] = True
    if run.error != original_error(run):
        changes["error"] = original_error(run)
    if decision.ending is not None:
        decision = end(state, *decision.ending, changes, at_once=result.ends_at_once)
    changes |= {**no_deferrals(run), **decision.changes}
    return replace(decision, changes=changes, outcome=name_of(result.outcome))


def _start_changes(state: State) -> dict[str, Any]:
    """Return the changes of a run that has a Context for the first time. A planned run keeps its new position. The path
    of a run that has failed before its start does not start it: resumed, it starts anew."""
    if state.run.ending is not None:
        return {}
    position = {"position": state.run.position} if state.run.planned else {}
    return {"started_at": state.run.started_at or state.started, **position, **deadline_change(state.run)}


def deadline_change(run: WorkflowRun) -> dict[str, Any]:
    """Return the change that keeps the deadline of a run that has not started yet: one that was planned, or has
    collected events, gets it from the worker that is about to start it."""
    return {"deadline": run.deadline} if run.started_at is None and run.deadline is not None else {}


def _after(state: State, outcome: Outcome, context: type[BaseModel]) -> Decision:
    definition, step, finished = state.definition, state.step, state.finished
    match outcome:
        case Goto(target, progress):
            entered = definition.step(target)
            if entered.wait is not None:
                return _with_progress(_suspended(state, entered.name, entered.wait), progress)
            changes = _enter(target, WakeReason.FIRST, WorkflowStatus.RUNNING)
            released = {"wake_at": finished, "lease": None} if state.is_budget_spent else {}
            return _with_progress(Decision(changes | released), progress)
        case Sleep(duration, until, then):
            target = definition.step(then).name if then else step.name
            wake_at = until or finished + (duration or timedelta(0))
            broken = {"depth": 0} if state.run.depth and wake_at - finished >= CHAIN_BREAK else {}
            entered_at = {"wake_at": state.run.by_deadline(wake_at), "lease": None} | broken
            return Decision(_enter(target, WakeReason.TIMER, WorkflowStatus.WAITING) | entered_at)
        case Wait():
            return _suspended(state, step.name, outcome)
        case Choice(branches=branches, is_all=True) if not branches:
            target = definition.step(outcome.then).name if outcome.then else step.name
            changes = _enter(step.name, WakeReason.ALL, WorkflowStatus.RUNNING) | {"wake_step": target, "branches": []}
            return Decision(changes | ({"wake_at": finished, "lease": None} if state.is_budget_spent else {}))
        case Choice():
            return _suspended_in_branches(state, step.name, outcome)
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
            if state.run.ending is not None:
                changes = off_path(state.run, finished)
                is_failed = changes["status"] == WorkflowStatus.FAILED
                kept = kept_waits(state.run, changes["visit"])
                return Decision(
                    changes, fields=fields, failure=changes["error"] if is_failed else None, kept_waits=kept
                )
            done = None if state.run.progress is None else 1.0
            return _with_progress(Decision(ended(WorkflowStatus.COMPLETED, "", finished), fields=fields), done)
        case Fail(reason):
            return Decision({}, ending=(WorkflowStatus.FAILED, storable(reason)))
    raise OutcomeError(
        f"{definition.name}.{step.name} returned {outcome!r:.200}, which is not an outcome. A step returns goto(...), "
        "sleep(...), wait(...), wait_for_event(...), wait_any(...), wait_all(...), run_subflow(...), complete(...) or "
        "fail(...)." + (" Did you forget `return complete()`?" if outcome is None else "")
    )


def _failed(state: State, raised: Raised) -> Decision:
    """Retry the step after its backoff, or end the run. The step's changes to its Context are kept."""
    run, error, now = state.run, raised.text, state.finished
    changes: dict[str, Any] = deadline_change(run)
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
    following = raised.next_attempt(state.definition.retry_of(state.step), run.attempt + 1, run.idempotency_key, now)
    if following is None or following.counts:
        changes |= no_deferrals(run)
    if isinstance(raised.error, PayloadError):
        # The sender's mistake: an operator can repair the Context or drop the payload, and resume.
        changes |= parking_changes(run, error, now, awaiting_deploy=False)
    elif following is None:
        changes["attempt"] = run.attempt + 1
        decision = end(state, WorkflowStatus.FAILED, error, changes)
        return replace(decision, changes={**changes, **decision.changes})
    else:
        changes |= {"attempt": run.attempt + 1} if following.counts else {"deferrals": run.deferrals + 1}
        changes |= {"status": WorkflowStatus.WAITING, "error": error}
        changes |= {"wake_at": run.by_deadline(later(now, following.delay)), "lease": None}
        if run.depth and breaks_chain(following.delay):
            changes["depth"] = 0
    is_deferral = following is not None and not following.counts
    return Decision(changes, outcome=DEFERRED if is_deferral else "error", error=error)


def no_deferrals(run: WorkflowRun) -> dict[str, int]:
    """Return the change that ends a series of deferrals, if there is one."""
    return {"deferrals": 0} if run.deferrals else {}


def end(
    state: State, status: WorkflowStatus, error: str, changes: Mapping[str, Any], *, at_once: bool = False
) -> Decision:
    """Return the end of the run, or its entry into the path to this end. ``changes``: the columns that its attempt
    changes, too. ``at_once``: the end was requested, and skips the path.

    A run that is on a path already ends: the path has failed, unless its end was requested.
    """
    run, now = state.run, state.finished
    hook = None if at_once else state.definition.path_to(status)
    if run.ending is not None:
        last = path_ended_at_once(run, error, now) if at_once else broken_path(run, error, now)
        return Decision(last, error=error, failure=last["error"] if last["status"] == WorkflowStatus.FAILED else None)
    if hook is not None:
        return Decision(onto_path(run, hook, status, error, now, changes), error=error)
    failure = error if status == WorkflowStatus.FAILED else None
    return Decision(ended(status, error, now), error=error, failure=failure)


def _enter(step: str, reason: WakeReason, status: WorkflowStatus) -> dict[str, Any]:
    return {"current_step": step, "wake_reason": reason.value, "wake_ref": None, "status": status, "attempt": 0}


def _with_progress(decision: Decision, progress: float | None) -> Decision:
    """Return ``decision`` with the progress that a step has reported, if it has: else the column is not written."""
    return decision if progress is None else replace(decision, changes={**decision.changes, "progress": progress})


def _suspended(state: State, step: str, wait: Wait) -> Decision:
    for target in (wait.then, wait.on_timeout):
        if target is not None:
            state.definition.step(target)
    wait = _in_namespace(state, wait)
    # Due soon, in case this worker dies before it has looked for what has arrived already.
    changes = _enter(step, WakeReason.FIRST, WorkflowStatus.SUSPENDED)
    due = state.run.by_deadline(state.finished + conf().LEASE)
    return Decision(changes | {"lease": None, "wake_at": due}, wait=wait)


def _suspended_in_branches(state: State, step: str, choice: Choice) -> Decision:
    for target in choice.targets():
        state.definition.step(target)
    branches = {
        name: _in_namespace(state, branch) if isinstance(branch, Wait) else branch
        for name, branch in choice.branches.items()
    }
    changes = _enter(step, WakeReason.FIRST, WorkflowStatus.SUSPENDED)
    if choice.is_all:
        changes |= {"wake_reason": WakeReason.ALL.value, "wake_step": choice.then or step, "branches": []}
    due = {"lease": None, "wake_at": state.run.by_deadline(state.finished + conf().LEASE)}
    return Decision(changes | due, wait=replace(choice, branches=branches))


def _in_namespace(state: State, wait: Wait) -> Wait:
    return replace(wait, namespace=state.definition.namespace) if wait.namespace is None else wait


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
        case Choice(is_all=is_all):
            return "wait_all" if is_all else "wait_any"
        case Complete():
            return "complete"
        case Fail():
            return "fail"
        case Subflow():
            return "subflow"
    return "error"
