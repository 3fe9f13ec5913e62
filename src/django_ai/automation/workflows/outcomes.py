"""What a step returns: frozen values that say what comes next. ``transitions`` turns one into a change of the run.

A target is the name of a step or the step itself (``self.finish``). Wrong arguments are refused when the outcome is
made, inside the step, with the value and the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from ..events.matching.context_expressions import check_expression
from ..events.matching.match import Match
from ..events.names import check_namespace, is_pattern
from ..exceptions import DefinitionError
from ..values.classes import declaration_of
from ..values.clock import aware
from ..values.json_text import storable

Target: TypeAlias = "str | Callable[..., Any]"


class StepName(str):
    """The name of a step that was given as the step itself: ``function`` says whose it is."""

    function: Any

    def __new__(cls, name: str, function: Any) -> StepName:
        made = super().__new__(cls, name)
        made.function = function
        return made


def target_name(target: Any, what: str) -> str:
    """Return the name of a step that is given as a text or as the step itself."""
    if isinstance(target, str) and target:
        return target
    definition = getattr(target, "__step__", None)
    if definition is not None:
        return StepName(definition.name, getattr(target, "__func__", target))
    if callable(target) and hasattr(target, "__name__"):
        raise DefinitionError(f"{what}: {target.__name__!r} is not a step; decorate it with @step().")
    raise DefinitionError(f"{what}: {target!r} is neither the name of a step nor a step; write self.my_step.")


@dataclass(frozen=True, slots=True)
class Goto:
    step: str


@dataclass(frozen=True, slots=True)
class Sleep:
    duration: timedelta | None
    until: datetime | None
    then: str | None


@dataclass(frozen=True, slots=True)
class Wait:
    """``event``: the name of an Event to wait for; else ``signal`` is a channel of the project's own."""

    signal: str
    event: str | None = None
    match: Match | None = None
    timeout: timedelta | None = None
    on_timeout: str | None = None
    then: str | None = None
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fail:
    reason: str


@dataclass(frozen=True, slots=True)
class Subflow:
    workflow: str
    arguments: Mapping[str, Any]
    then: str | None


Outcome: TypeAlias = Goto | Sleep | Wait | Complete | Fail | Subflow


def goto(step: Target) -> Goto:
    """Go on with another step, in the same worker if it has time left. Raises ``DefinitionError`` for a non-step."""
    return Goto(target_name(step, "goto()"))


def sleep(duration: timedelta | None = None, *, until: datetime | None = None, then: Target | None = None) -> Sleep:
    """Pause for ``duration`` (a timedelta), or until a date, without keeping a worker.

    Afterwards this step is entered again (``get_wake().reason`` is ``"timer"``), or ``then`` if it is given.
    Raises ``DefinitionError`` and ``NaiveDatetimeError``.
    """
    if (duration is None) == (until is None):
        raise DefinitionError("sleep() takes either a duration (a timedelta) or until= (a datetime).")
    if duration is not None and (not isinstance(duration, timedelta) or duration < timedelta(0)):
        raise DefinitionError(f"sleep({duration!r}): give a timedelta of zero or more, as in timedelta(seconds=5).")
    if until is not None:
        until = aware(until, "sleep(until=...)")
    return Sleep(duration, until, None if then is None else target_name(then, "sleep(then=...)"))


def check_name(name: Any, what: str) -> None:
    """Raise ``DefinitionError`` unless ``name`` is a text that names a signal or an event in every database."""
    if not isinstance(name, str) or not 0 < len(name) <= 200 or storable(name) != name:
        raise DefinitionError(f"{what}: a name is a text of 1 to 200 characters without NUL or surrogates.")


def _wait(
    what: str,
    signal: str,
    event: str | None,
    match: Mapping[str, Any] | None,
    timeout: timedelta | None,
    on_timeout: Target | None,
    then: Target | None,
    namespace: str | None = None,
) -> Wait:
    name = signal if event is None else event
    check_name(name, f"{what}({name!r})")
    if event is not None:
        check_expression(event, f"{what}({name!r})")
        if is_pattern(event):
            raise DefinitionError(f"{what}({name!r}): a wait is for one event; name it, without '*'.")
    if timeout is not None and (not isinstance(timeout, timedelta) or timeout < timedelta(0)):
        raise DefinitionError(f"{what}({name!r}): timeout={timeout!r} must be a timedelta of zero or more.")
    if on_timeout is not None and timeout is None:
        raise DefinitionError(f"{what}({name!r}): on_timeout= needs a timeout=, or it is never reached.")
    return Wait(
        signal=signal,
        event=event,
        match=None if match is None else Match.of(match, f"{what}({name!r})"),
        timeout=timeout,
        on_timeout=None if on_timeout is None else target_name(on_timeout, f"{what}(on_timeout=...)"),
        then=None if then is None else target_name(then, f"{what}(then=...)"),
        namespace=check_namespace(namespace, f"{what}({name!r})"),
    )


class _WaitFunction:
    """``wait("name")``, with ``wait.for_signal`` and ``wait.for_event`` beside it."""

    def __call__(
        self,
        signal: str,
        timeout: timedelta | None = None,
        on_timeout: Target | None = None,
        *,
        then: Target | None = None,
    ) -> Wait:
        """Pause until somebody calls ``engine.signal(signal, ...)``.

        Its payload merges into the Context where that has the fields. Then this step is entered again
        (``get_wake()`` has the payload), or ``then``. After ``timeout`` the run goes on with ``on_timeout``, or enters
        this step again with ``get_wake().reason == "timeout"``. A signal that has come since the run was
        created, and that it has not consumed, ends the wait at once. Raises ``DefinitionError``.
        """
        if isinstance(signal, str) and signal.startswith("event:"):
            return self.for_event(signal.removeprefix("event:"), timeout=timeout, on_timeout=on_timeout, then=then)
        return _wait("wait", signal, None, None, timeout, on_timeout, then)

    def for_signal(
        self,
        signal: str,
        timeout: timedelta | None = None,
        on_timeout: Target | None = None,
        *,
        then: Target | None = None,
    ) -> Wait:
        """The same as ``wait(...)``."""
        return self(signal, timeout=timeout, on_timeout=on_timeout, then=then)

    def for_event(
        self,
        event_name: str,
        timeout: timedelta | None = None,
        on_timeout: Target | None = None,
        *,
        match: Mapping[str, Any] | None = None,
        then: Target | None = None,
        namespace: str | None = None,
    ) -> Wait:
        """Pause until the event ``event_name`` occurs; the arguments are those of ``wait``.

        ``match`` says for which entity: ``{"reservation_id": "{{ ctx.reservation_id }}"}``, values or expressions on
        the Context. Without it only the run's own entity counts, if its model declares the event; else any does, as
        with ``match={}``. A name with expressions on the Context (``"task_done:{{ ctx.task_id }}"``) says by itself
        which one is meant. ``namespace``: only events in it (default: what its event workflow says;
        ``"*"``: any). An occurrence since the run was created that it has not consumed ends the wait at once.
        """
        signal = f"event:{event_name}"
        return _wait("wait_for_event", signal, event_name, match, timeout, on_timeout, then, namespace)


wait = _WaitFunction()


class _WaitForEvent:
    """``return wait_for_event("name")`` in a step, or ``@wait_for_event("name")`` above ``@step()``."""

    def __call__(
        self,
        event_name: str,
        timeout: timedelta | None = None,
        on_timeout: Target | None = None,
        *,
        match: Mapping[str, Any] | None = None,
        then: Target | None = None,
        namespace: str | None = None,
    ) -> WaitForEvent:
        found = wait.for_event(
            event_name, match=match, timeout=timeout, on_timeout=on_timeout, then=then, namespace=namespace
        )
        return WaitForEvent(**{each.name: getattr(found, each.name) for each in fields(found)})


@dataclass(frozen=True, slots=True)
class WaitForEvent(Wait):
    """A wait that is also a decorator: the step below it starts when the event has come."""

    def __call__(self, function: Any) -> Any:
        definition = getattr(function, "__step__", None)
        if definition is None:
            raise DefinitionError(
                f"@wait_for_event({self.event!r}) stands above @step(), and {function!r} is not a step."
            )
        function.__step__ = definition.waiting_for(self)
        return function


wait_for_event = _WaitForEvent().__call__


def complete(**fields: Any) -> Complete:
    """End the run well. ``fields`` are merged into the Context; one that it does not have is an error."""
    return Complete(fields)


def fail(reason: str) -> Fail:
    """End the run as failed, without retry; ``reason`` is kept on the run."""
    if not isinstance(reason, str) or not reason.strip():
        raise DefinitionError(f"fail({reason!r}): give a reason that a person can read.")
    return Fail(reason)


def run_subflow(workflow: str | type, *, then: Target | None = None, **arguments: Any) -> Subflow:
    """Start another workflow, by its name or class, and pause until it has ended.

    ``arguments`` go to its ``create_context``. Then this step is entered again, or ``then``; ``get_wake().payload`` has
    the child's ``status``, ``data`` and ``error``.
    """
    if isinstance(workflow, type):
        name = str(declaration_of(workflow, "__workflow__", "a workflow", "@workflow(...)").name)
    elif isinstance(workflow, str):
        name = workflow
    else:
        raise DefinitionError(f"run_subflow({workflow!r}): give the name of a workflow or its class.")
    return Subflow(name, arguments, None if then is None else target_name(then, "run_subflow(then=...)"))
