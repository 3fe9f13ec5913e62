"""The Context of the step that runs now: the same object behind ``get_context()`` and ``self.context``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class WakeReason(StrEnum):
    """Why a step was entered."""

    FIRST = "first"
    TIMER = "timer"
    TIMEOUT = "timeout"
    SIGNAL = "signal"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class Wake:
    """Why the step was entered, and with what: ``payload`` of the signal or event, else empty."""

    reason: WakeReason = WakeReason.FIRST
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Current:
    """What runs now. ``instance``: of the workflow's class, with the Context. ``ending``: the step has asked for the
    end of its own run, and why."""

    instance: Any
    wake: Wake
    run: Any
    ending: tuple[Any, str] | None = None


_current: ContextVar[Current | None] = ContextVar("automation_workflow", default=None)


@contextmanager
def running(current: Current) -> Iterator[None]:
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)


def own_run_pk() -> int | None:
    """Return the primary key of the run whose step runs now, or None."""
    current = _current.get()
    return None if current is None else int(current.run.pk)


def end_own_run(pk: int, status: Any, reason: str) -> bool:
    """Say whether run ``pk`` is the one whose step runs now; it then ends with that step's commit, and is not touched
    behind its worker's back."""
    current = _current.get()
    if current is None or current.run.pk != pk:
        return False
    current.ending = (status, reason)
    return True


def _now_running(what: str) -> Current:
    current = _current.get()
    if current is None:
        raise RuntimeError(f"{what} has a value only inside a step of a workflow.")
    return current


def get_context() -> Any:
    """Return the Context of the run whose step runs now; changes to it are kept. Raises ``RuntimeError`` elsewhere."""
    return _now_running("get_context()").instance.context


def get_wake() -> Wake:
    """Return why this step was entered, and the payload of what woke it. Raises ``RuntimeError`` outside a step."""
    return _now_running("get_wake()").wake


def get_run() -> Any:
    """Return the ``WorkflowRun`` whose step runs now, to be read only. Raises ``RuntimeError`` outside a step."""
    return _now_running("get_run()").run
