"""``decide``: what the attempt of a handler gave becomes the end or the next try of its execution, and says whether the
agent goes on.

Pure: no database, no clock, no code of the project. The runner tries, asks ``decide``, and records what that says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..values.failures import Raised
from ..values.retry import Retry
from .models import AgentStatus, HandlerStatus


@dataclass(frozen=True, slots=True)
class State:
    """What a decision depends on, beside what the attempt gave. ``attempt``: how many the execution had before."""

    attempt: int
    retry: Retry
    started: datetime
    finished: datetime
    next_due: datetime | None = None
    """When the next execution in the agent's mailbox is due."""
    is_share_used: bool = False
    """Whether the worker's share of time is used, so that it gives the agent back."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned. ``ending``: how it has ended its own agent, and why."""

    ending: tuple[AgentStatus, str] | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """The handler was not called, and is not going to be."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """This worker's code does not have what the execution needs."""

    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the execution and of its agent."""

    execution: Mapping[str, Any]
    agent: Mapping[str, Any]
    ends: bool = False
    """Whether the agent ends with it."""

    @property
    def failure(self) -> str | None:
        """Why the execution has failed for good, if it has."""
        return str(self.execution["error"]) if self.execution.get("status") == HandlerStatus.FAILED else None


def decide(state: State, gave: Returned | Skipped | Unknown | Raised) -> Decision:
    """Return what becomes of the execution and of its agent."""
    match gave:
        case Skipped(reason):
            return Decision(_ended(state, HandlerStatus.SKIPPED, reason), _rest(state))
        case Unknown(reason):
            parked = {**_ended(state, HandlerStatus.PARKED, reason), "parked_at": state.started}
            return Decision(parked, _rest(state))
        case Returned(ending):
            completed = _ended(state, HandlerStatus.COMPLETED, "", tries=1)
            if ending is None:
                return Decision(completed, _rest(state))
            status, reason = ending
            end = {"status": status, "error": reason, "finished_at": state.finished, "wake_at": None, "lease": None}
            return Decision(completed, end, ends=True)
        case Raised():
            return _failed(state, gave)


def _failed(state: State, raised: Raised) -> Decision:
    """Try the execution again after its backoff, or end it. The agent lives on, with what the handler has changed in
    its Context."""
    kept = {} if raised.data is None else {"data": raised.data}
    delay = raised.delay(state.retry, state.attempt + 1)
    if delay is None:
        return Decision(_ended(state, HandlerStatus.FAILED, raised.text, tries=1), kept | _rest(state))
    due_at = state.finished + delay
    again = {"attempt": state.attempt + 1, "error": raised.text, "started_at": state.started, "due_at": due_at}
    return Decision(again, kept | _rest(state, due_at))


def _ended(state: State, status: HandlerStatus, error: str, *, tries: int = 0) -> dict[str, Any]:
    return {
        "status": status,
        "error": error,
        "attempt": state.attempt + tries,
        "started_at": state.started,
        "finished_at": state.finished,
        "parked_at": None,
    }


def _rest(state: State, again: datetime | None = None) -> dict[str, Any]:
    """Return the changes that let the agent rest until its mailbox is next due, or none where that is now."""
    if state.next_due is not None and state.next_due <= state.finished and not state.is_share_used:
        return {}
    return {"wake_at": min((each for each in (state.next_due, again) if each is not None), default=None), "lease": None}
