"""The Context of the step that runs now: the same object behind ``get_context()`` and ``self.context``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from ..queues.causation import current_run

KIND = "workflow"


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


class View(NamedTuple):
    """What the code of a step sees. ``instance``: of the workflow's class, with the Context."""

    instance: Any
    wake: Wake
    run: Any


def _view(what: str) -> View:
    current = current_run(KIND)
    if current is None:
        raise RuntimeError(f"{what} has a value only inside a step of a workflow.")
    view: View = current.view
    return view


def get_context() -> Any:
    """Return the Context of the run whose step runs now; changes to it are kept. Raises ``RuntimeError`` elsewhere."""
    return _view("get_context()").instance.context


def get_wake() -> Wake:
    """Return why this step was entered, and the payload of what woke it. Raises ``RuntimeError`` outside a step."""
    return _view("get_wake()").wake


def get_run() -> Any:
    """Return the ``WorkflowRun`` whose step runs now, to be read only. Raises ``RuntimeError`` outside a step."""
    return _view("get_run()").run
