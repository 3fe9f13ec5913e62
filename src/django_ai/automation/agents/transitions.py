"""``decide``: the result of a handler becomes the next state of its execution and of its agent.

Pure: no database, no clock, no project code. The session calls the handler, calls ``decide``, and commits the decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..values.clock import later
from ..values.failures import Raised
from ..values.retry import Retry
from .models import AgentStatus, HandlerStatus


@dataclass(frozen=True, slots=True)
class State:
    """The input of a decision, beside the result. ``attempt``: the number of earlier attempts. ``deferrals``: how many
    of the last attempts in a row were not counted (``RetryAfter``). ``key``: the execution's idempotency key."""

    attempt: int
    retry: Retry
    started: datetime
    finished: datetime
    deferrals: int = 0
    key: str = ""
    next_due: datetime | None = None
    """When the next execution in the agent's mailbox is due."""
    is_budget_spent: bool = False
    """Whether the worker's ``DRAIN_BUDGET`` is spent, so that it releases the agent."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned. ``ending``: the status and the reason with which it has ended its agent."""

    ending: tuple[AgentStatus, str] | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """The handler was not called, and will not be."""

    reason: str


@dataclass(frozen=True, slots=True)
class AwaitsSlot:
    """The handler was not called, because a limit does not admit it yet. ``start``: when it may start, if that is known
    already."""

    start: datetime | None


@dataclass(frozen=True, slots=True)
class MissingCode:
    """This worker's code lacks the handler or the event of the execution."""

    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The changes of the execution and of its agent."""

    execution: Mapping[str, Any]
    agent: Mapping[str, Any]
    ends: bool = False
    """Whether the agent ends with this execution."""

    @property
    def failure(self) -> str | None:
        """The error of an execution that has failed finally, or None."""
        return str(self.execution["error"]) if self.execution.get("status") == HandlerStatus.FAILED else None


def decide(state: State, result: Returned | Skipped | AwaitsSlot | MissingCode | Raised) -> Decision:
    """Return the changes of the execution and of its agent."""
    match result:
        case Skipped(reason):
            return Decision(_ended(state, HandlerStatus.SKIPPED, reason), _release_until_due(state))
        case AwaitsSlot(None):
            return Decision({"status": HandlerStatus.WAITING}, _release_until_due(state))
        case AwaitsSlot(start):
            return Decision({"due_at": start}, _release_until_due(state, start))
        case MissingCode(reason):
            parked = {**_ended(state, HandlerStatus.PARKED, reason), "parked_at": state.started}
            return Decision(parked, _release_until_due(state))
        case Returned(ending):
            completed = _ended(state, HandlerStatus.COMPLETED, "", tries=1)
            if ending is None:
                return Decision(completed, _release_until_due(state))
            status, reason = ending
            end = {"status": status, "error": reason, "finished_at": state.finished, "wake_at": None, "lease": None}
            return Decision(completed, end, ends=True)
        case Raised():
            return _failed(state, result)


def _failed(state: State, raised: Raised) -> Decision:
    """Retry the execution after its backoff, or end it. The agent keeps the handler's changes to its Context."""
    kept = {} if raised.data is None else {"data": raised.data}
    following = raised.next_attempt(state.retry, state.attempt + 1, state.key, state.finished)
    if following is None:
        return Decision(_ended(state, HandlerStatus.FAILED, raised.text, tries=1), kept | _release_until_due(state))
    due_at = later(state.finished, following.delay)
    retried: dict[str, Any] = {"error": raised.text, "started_at": state.started, "due_at": due_at}
    if following.counts:
        retried |= {"attempt": state.attempt + 1, **_no_deferrals(state)}
    else:
        retried["deferrals"] = state.deferrals + 1
    return Decision(retried, kept | _release_until_due(state, due_at))


def _no_deferrals(state: State) -> dict[str, int]:
    """Return the change that ends a series of deferrals, if there is one."""
    return {"deferrals": 0} if state.deferrals else {}


def _ended(state: State, status: HandlerStatus, error: str, *, tries: int = 0) -> dict[str, Any]:
    return {
        "status": status,
        "error": error,
        "attempt": state.attempt + tries,
        "started_at": state.started,
        "finished_at": state.finished,
        "parked_at": None,
        **_no_deferrals(state),
    }


def _release_until_due(state: State, retry_at: datetime | None = None) -> dict[str, Any]:
    """Return the changes that release the agent until its mailbox is next due, or none if that is now."""
    if state.next_due is not None and state.next_due <= state.finished and not state.is_budget_spent:
        return {}
    return {
        "wake_at": min((each for each in (state.next_due, retry_at) if each is not None), default=None),
        "lease": None,
    }
