"""What the code of a step can ask for: its Context, its run, and why it was entered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar, overload

from pydantic import BaseModel

from ..exceptions import DefinitionError
from ..queues.causation import current_run

KIND = "workflow"

Ctx = TypeVar("Ctx", bound=BaseModel)


class WakeReason(StrEnum):
    """Why a step was entered.

    Attributes:
        FIRST: The run starts, or another step returned ``goto``.
        TIMER: A ``sleep`` is over.
        TIMEOUT: A wait has reached its timeout.
        SIGNAL: The signal that the run waited for has arrived, or its child run has ended.
        EVENT: The event that the run waited for has occurred.
        ALL: All branches of a ``wait_all`` are over.

    Example:
        Members are strings, so both of these are true after a ``sleep``::

            get_wake().reason == WakeReason.TIMER
            get_wake().reason == "timer"
    """

    FIRST = "first"
    TIMER = "timer"
    TIMEOUT = "timeout"
    SIGNAL = "signal"
    EVENT = "event"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Wake:
    """Why a step was entered, and what came with it; ``get_wake()`` returns it.

    Attributes:
        reason: A ``WakeReason``. Default: ``FIRST``.
        payload: What the signal or event brought, or how the child run has ended, as a mapping. Default: empty.
        branch: The name of the branch of ``wait_any`` that came first. Default: empty, as after other waits and after
            the timeout of the whole.
        branches: What each branch of ``wait_all`` has brought, as a mapping from names to ``Wake``. After the timeout
            of the whole it has the branches that were over. Default: empty.

    Example:
        A step that is entered before and after a wait::

            @step(start=True)
            def ask(self):
                wake = get_wake()
                if wake.reason == WakeReason.SIGNAL:
                    return complete(answer=wake.payload["answer"])
                return wait("answer")
    """

    reason: WakeReason = WakeReason.FIRST
    payload: Mapping[str, Any] = field(default_factory=dict)
    branch: str = ""
    branches: Mapping[str, Wake] = field(default_factory=dict)


class View(NamedTuple):
    """What the code of the current step can read. ``instance``: an object of the workflow's class, with the Context."""

    instance: Any
    wake: Wake
    run: Any


def _view(what: str) -> View:
    current = current_run(KIND)
    if current is None:
        raise RuntimeError(f"{what} works only inside a step of a workflow.")
    view: View = current.view
    return view


@overload
def get_context() -> Any: ...


@overload
def get_context(expected: type[Ctx], /) -> Ctx: ...


def get_context(expected: type[BaseModel] | None = None, /) -> Any:
    """Return the Context of the run whose step is running: the object that is ``self.context`` in the step.

    Its changes are stored in the commit of the step.

    Args:
        expected: The class of the Context; type checkers then know the result's class. Default: the result is not
            typed.

    Returns:
        The Context.

    Raises:
        RuntimeError: Outside a step of a workflow.
        DefinitionError: If the Context is not of the class ``expected``.

    Example:
        A function that several steps call::

            def add_line(text: str) -> None:
                get_context(LetterContext).lines.append(text)
    """
    context = _view("get_context()").instance.context
    if expected is not None and not isinstance(context, expected):
        raise DefinitionError(
            f"get_context({expected.__qualname__}): the Context of the running workflow is a "
            f"{type(context).__qualname__}. Ask for that class, or call get_context() without one."
        )
    return context


def get_wake() -> Wake:
    """Return why the current step was entered, and the payload of what woke the run.

    Returns:
        A ``Wake`` with ``reason`` and ``payload``.

    Raises:
        RuntimeError: Outside a step of a workflow.

    Example:
        Tell a timeout from an answer::

            @step()
            def after_question(self):
                return goto(self.remind) if get_wake().reason == "timeout" else goto(self.thank)
    """
    return _view("get_wake()").wake


def get_run() -> Any:
    """Return the run of the current step. Read it only: the step's outcome writes its progress.

    Returns:
        The ``WorkflowRun``.

    Raises:
        RuntimeError: Outside a step of a workflow.

    Example:
        Refer to the run from a row of the project::

            @step()
            def book(self):
                Booking.objects.create(run_id=get_run().pk)
                return complete()
    """
    return _view("get_run()").run
