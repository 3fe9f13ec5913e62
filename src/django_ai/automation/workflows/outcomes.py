"""Outcomes, the frozen values that a step returns; ``transitions`` turns one into a change of the run.

A target is the name of a step or the step itself (``self.finish``). Invalid arguments raise inside the step, when the
outcome is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypeVar

from ..events.definitions import EventDefinition, EventName
from ..events.matching.context_expressions import check_expression
from ..events.matching.match import Match
from ..events.names import check_namespace, is_pattern, is_template
from ..exceptions import DefinitionError
from ..values.classes import declaration_of
from ..values.clock import aware
from ..values.json_text import storable

F = TypeVar("F", bound=Callable[..., Any])

Target: TypeAlias = str | Callable[..., Any]
"""A step to enter: its name, or the step itself."""


class StepName(str):
    """The name of a step that was given as the step itself: ``function`` tells which class it belongs to."""

    function: Any

    def __new__(cls, name: str, function: Any) -> StepName:
        made = super().__new__(cls, name)
        made.function = function
        return made


def target_name(target: Any, what: str) -> str:
    """Return the name of a step that is given as a string or as the step itself."""
    if isinstance(target, str) and target:
        return target
    definition = getattr(target, "__step__", None)
    if definition is not None:
        return StepName(definition.name, getattr(target, "__func__", target))
    if callable(target) and hasattr(target, "__name__"):
        raise DefinitionError(f"{what}: {target.__name__!r} is not a step; decorate it with @step().")
    raise DefinitionError(f"{what}: {target!r} is neither a step nor the name of one; write self.my_step.")


@dataclass(frozen=True, slots=True)
class Goto:
    step: str
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    duration: timedelta | None
    until: datetime | None
    then: str | None


@dataclass(frozen=True, slots=True)
class Wait:
    """``event``: the name of the event to wait for; if None, ``signal`` is a signal of the project."""

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


Branch: TypeAlias = Wait | Sleep | Subflow
"""What a branch of ``wait_any`` or ``wait_all`` may be."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Several branches, by their names: the first (``wait_any``) or all of them (``wait_all``, ``is_all``)."""

    branches: Mapping[str, Branch]
    is_all: bool = False
    timeout: timedelta | None = None
    on_timeout: str | None = None
    then: str | None = None

    def targets(self) -> list[str]:
        """Return the steps that it names."""
        named = [self.then, self.on_timeout]
        for branch in self.branches.values():
            named += [branch.then, branch.on_timeout if isinstance(branch, Wait) else None]
        return [each for each in named if each is not None]


Outcome: TypeAlias = Goto | Sleep | Wait | Choice | Complete | Fail | Subflow


def goto(step: Target, *, progress: float | None = None) -> Goto:
    """Continue with another step of the workflow.

    The returning step and the move to the next one are one commit. The same worker then enters the next step at once,
    unless its share of time (``AUTOMATION["DRAIN_BUDGET"]``) is used up.

    Args:
        step: The step to enter, as a method (``self.send``) or as its name.
        progress: How much of the run is done, for people: a number from 0 to 1. It is kept as ``run.progress`` and
            changes nothing else; it may go back. A run that has one gets 1.0 when it completes. Default: unchanged.

    Returns:
        The outcome, to be returned by the step.

    Raises:
        DefinitionError: If ``step`` is neither a step nor a string, or if ``progress`` is no number from 0 to 1.

    Example:
        Skip the packing of a download::

            @step(start=True)
            def check(self):
                return goto(self.send) if self.context.is_download else goto(self.pack)

        Say how far an import is::

            @step()
            def next_page(self):
                self.context.page += 1
                return goto(self.next_page, progress=self.context.page / self.context.pages)
    """
    return Goto(target_name(step, "goto()"), None if progress is None else _share(progress))


def _share(progress: Any) -> float:
    """Return ``progress`` as a float. Raises ``DefinitionError`` unless it is a number from 0 to 1."""
    is_number = isinstance(progress, int | float) and not isinstance(progress, bool)
    if not is_number or not 0 <= progress <= 1:
        raise DefinitionError(
            f"goto(progress={progress!r:.100}): give the share that is done, a number from 0 to 1, as in progress=0.4."
        )
    return float(progress)


def sleep(duration: timedelta | None = None, *, until: datetime | None = None, then: Target | None = None) -> Sleep:
    """Pause the run for a duration or until a date. No worker is occupied in the meantime.

    Args:
        duration: How long to pause, as a timedelta of zero or more. Give this or ``until``.
        until: When to continue, as a datetime with a time zone. One in the past continues at once.
        then: The step to enter afterwards, as a method or its name. Default: this step again, where
            ``get_wake().reason`` is ``"timer"``.

    Returns:
        The outcome, to be returned by the step.

    Raises:
        DefinitionError: If neither or both of ``duration`` and ``until`` are given, or if one is invalid.
        NaiveDatetimeError: If ``until`` has no time zone.

    Example:
        Look at a shipment once a day::

            @step(start=True)
            def look(self):
                if Shipment.objects.get(pk=self.context.shipment_id).arrived:
                    return complete()
                return sleep(timedelta(days=1))
    """
    if (duration is None) == (until is None):
        raise DefinitionError("sleep() takes either a duration (a timedelta) or until= (a datetime), and not both.")
    if duration is not None and (not isinstance(duration, timedelta) or duration < timedelta(0)):
        raise DefinitionError(f"sleep({duration!r}): give a timedelta of zero or more, as in timedelta(seconds=5).")
    if until is not None:
        until = aware(until, "sleep(until=...)")
    return Sleep(duration, until, None if then is None else target_name(then, "sleep(then=...)"))


def check_name(name: Any, what: str) -> None:
    """Raise ``DefinitionError`` unless ``name`` is a string that every database can store as a name."""
    if not isinstance(name, str) or not 0 < len(name) <= 200 or storable(name) != name:
        raise DefinitionError(f"{what}: a name is a string of 1 to 200 characters without NUL or surrogates.")


def check_timeout(timeout: Any, on_timeout: Target | None, what: str) -> None:
    """Raise ``DefinitionError`` unless ``timeout`` is None or a timedelta of zero or more; ``on_timeout`` needs one."""
    if timeout is not None and (not isinstance(timeout, timedelta) or timeout < timedelta(0)):
        raise DefinitionError(f"{what}: timeout={timeout!r} must be a timedelta of zero or more.")
    if on_timeout is not None and timeout is None:
        raise DefinitionError(f"{what}: on_timeout= needs timeout=.")


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
            raise DefinitionError(f"{what}({name!r}): a wait is for one event; name it without '*'.")
    check_timeout(timeout, on_timeout, f"{what}({name!r})")
    return Wait(
        signal=signal,
        event=event,
        match=None if match is None else Match.of(match, f"{what}({name!r})"),
        timeout=timeout,
        on_timeout=None if on_timeout is None else target_name(on_timeout, f"{what}(on_timeout=...)"),
        then=None if then is None else target_name(then, f"{what}(then=...)"),
        namespace=check_namespace(namespace, f"{what}({name!r})"),
    )


def _waited_for(event: EventName) -> str:
    """Return the name of the one event that a wait is for."""
    if not isinstance(event, EventDefinition):
        return event
    if is_template(event.name):
        raise DefinitionError(
            f"wait_for_event({event!r}): each entity has an event of its own name, and a wait is for one. Write its "
            "name with expressions on the Context, as in 'parcel_lost:{{ ctx.parcel_id }}'."
        )
    return event.name


class _WaitFunction:
    """Pause the run until a signal or an event arrives; use its one instance ``wait``.

    Example:
        Two ways to wait for a signal, and one to wait for an event::

            return wait("approval")
            return wait.for_signal("approval")
            return wait.for_event("order_paid")
    """

    def __call__(
        self,
        signal: str,
        timeout: timedelta | None = None,
        on_timeout: Target | None = None,
        *,
        then: Target | None = None,
    ) -> Wait:
        """Pause the run until code calls ``engine.signal(signal, ...)``.

        The keys of the signal's payload that are fields of the Context are merged into it; ``get_wake().payload`` has
        all of them. A signal that arrived after the run was created, and that the run has not consumed, ends the wait
        at once.

        Args:
            signal: Name of the signal, a string of 1 to 200 characters. One that begins with ``event:`` waits for that
                event, as ``wait_for_event`` does.
            timeout: Longest time to wait, as a timedelta of zero or more. Default: no limit.
            on_timeout: The step to enter after the timeout, as a method or its name. Default: this step again, where
                ``get_wake().reason`` is ``"timeout"``. Needs ``timeout``.
            then: The step to enter after the signal, as a method or its name. Default: this step again, where
                ``get_wake().reason`` is ``"signal"``.

        Returns:
            The outcome, to be returned by the step.

        Raises:
            DefinitionError: If an argument is invalid.

        Example:
            Ask the manager, and refuse after three days without an answer::

                @step()
                def ask(self):
                    return wait("approval", timedelta(days=3), on_timeout=self.refuse, then=self.order)
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
        """Pause the run until a signal arrives; the same as ``wait(...)``.

        Args:
            signal: Name of the signal, a string of 1 to 200 characters.
            timeout: Longest time to wait, as a timedelta of zero or more. Default: no limit.
            on_timeout: The step to enter after the timeout, as a method or its name. Default: this step again. Needs
                ``timeout``.
            then: The step to enter after the signal, as a method or its name. Default: this step again.

        Returns:
            The outcome, to be returned by the step.

        Raises:
            DefinitionError: If an argument is invalid.

        Example:
            Hold a batch until the night shift begins::

                @step()
                def hold(self):
                    return wait.for_signal("night_shift", then=self.print_labels)
        """
        return self(signal, timeout=timeout, on_timeout=on_timeout, then=then)

    def for_event(
        self,
        event_name: EventName,
        timeout: timedelta | None = None,
        on_timeout: Target | None = None,
        *,
        match: Mapping[str, Any] | None = None,
        then: Target | None = None,
        namespace: str | None = None,
    ) -> Wait:
        """Pause the run until an event occurs; the same as ``wait_for_event(...)`` as an outcome.

        Args:
            event_name: Name of one event, as a string without ``*``, or its ``EventDefinition``. A string may have
                expressions on the Context: ``"parcel_lost:{{ ctx.parcel_id }}"``.
            timeout: Longest time to wait, as a timedelta of zero or more. Default: no limit.
            on_timeout: The step to enter after the timeout, as a method or its name. Default: this step again. Needs
                ``timeout``.
            match: Lookups on the event's entity (on the payload of a ``FreeEvent``) and the values they must have, as a
                dict; values may be expressions on the Context. ``{}`` means any entity. Default: the run's own entity,
                if its model declares the event; else any.
            then: The step to enter after the event, as a method or its name. Default: this step again.
            namespace: Only events in this namespace, as a string; ``"*"`` for any. Default: that of the event workflow.

        Returns:
            The outcome, to be returned by the step.

        Raises:
            DefinitionError: If an argument is invalid.

        Example:
            Wait for the payment of this run's order::

                @step()
                def await_payment(self):
                    return wait.for_event("order_paid", match={"pk": "{{ ctx.order_id }}"}, then=self.ship)
        """
        name = _waited_for(event_name)
        return _wait("wait_for_event", f"event:{name}", name, match, timeout, on_timeout, then, namespace)


wait = _WaitFunction()


@dataclass(frozen=True, slots=True)
class WaitForEvent(Wait):
    """A wait that is also a decorator: the step below it starts when the event has occurred."""

    def __call__(self, function: F) -> F:
        definition = getattr(function, "__step__", None)
        if definition is None:
            raise DefinitionError(
                f"@wait_for_event({self.event!r}) stands above @step(), and {function!r} is not a step."
            )
        function.__step__ = definition.waiting_for(self)  # type: ignore[attr-defined]
        return function


def wait_for_event(
    event_name: EventName,
    timeout: timedelta | None = None,
    on_timeout: Target | None = None,
    *,
    match: Mapping[str, Any] | None = None,
    then: Target | None = None,
    namespace: str | None = None,
) -> WaitForEvent:
    """Pause the run until an event occurs; also a decorator above ``@step()``, which then starts after the event.

    The keys of the event's payload that are fields of the Context are merged into it; ``get_wake().payload`` has all of
    them. An occurrence since the run was created, which the run has not consumed, ends the wait at once.

    Args:
        event_name: Name of one event, as a string without ``*``, or its ``EventDefinition``. A string may have
            expressions on the Context: ``"parcel_lost:{{ ctx.parcel_id }}"``.
        timeout: Longest time to wait, as a timedelta of zero or more. Default: no limit.
        on_timeout: The step to enter after the timeout, as a method or its name. Default: this step again, where
            ``get_wake().reason`` is ``"timeout"``. Needs ``timeout``.
        match: Lookups on the event's entity (on the payload of a ``FreeEvent``) and the values they must have, as a
            dict; values may be expressions on the Context. ``{}`` means any entity. Default: the run's own entity, if
            its model declares the event; else any.
        then: The step to enter after the event, as a method or its name. Default: this step again, where
            ``get_wake().reason`` is ``"event"``.
        namespace: Only events in this namespace, as a string; ``"*"`` for any. Default: that of the event workflow.

    Returns:
        The outcome, to be returned by the step, or the decorator.

    Raises:
        DefinitionError: If an argument is invalid, or if it decorates something else than a step.

    Example:
        As an outcome, and as a decorator::

            @step(start=True)
            def ask(self):
                return wait_for_event("order_paid", timedelta(days=14), on_timeout=self.cancel, then=self.ship)

            @wait_for_event("parcel_packed", match={"order_id": "{{ ctx.order_id }}"})
            @step()
            def ship(self):
                return complete()
    """
    found = wait.for_event(
        event_name, match=match, timeout=timeout, on_timeout=on_timeout, then=then, namespace=namespace
    )
    return WaitForEvent(**{each.name: getattr(found, each.name) for each in fields(found)})


def complete(**fields: Any) -> Complete:
    """End the run successfully.

    The status COMPLETED commits together with what the step has written.

    Args:
        **fields: Last values for fields of the Context.

    Returns:
        The outcome, to be returned by the step. A field that the Context does not have fails the attempt with
        ``ContextError``.

    Example:
        Keep the result with the run::

            @step()
            def add_up(self):
                return complete(total=sum(self.context.amounts))
    """
    return Complete(fields)


def fail(reason: str) -> Fail:
    """End the run as failed, without another attempt.

    The status FAILED commits together with what the step has written. To try again instead, raise an exception.

    Args:
        reason: Why the run has failed, as a string for the operator. It is kept in the run's ``error``.

    Returns:
        The outcome, to be returned by the step.

    Raises:
        DefinitionError: If ``reason`` is empty or not a string.

    Example:
        An order that cannot be shipped needs no retry::

            @step()
            def ship(self):
                if self.context.weight_kg > 30:
                    return fail(f"{self.context.weight_kg} kg is too heavy for a parcel.")
                return goto(self.print_label)
    """
    if not isinstance(reason, str) or not reason.strip():
        raise DefinitionError(f"fail({reason!r}): give a reason for the operator, as a string.")
    return Fail(reason)


def run_subflow(workflow: str | type, *, then: Target | None = None, **arguments: Any) -> Subflow:
    """Start a child run of another workflow, and pause until it has ended.

    The child is inserted in the commit of the step. If this run is cancelled, so is the child.

    Args:
        workflow: The workflow, as its name or its class.
        then: The step to enter afterwards, as a method or its name. Default: this step again. There
            ``get_wake().payload`` has the child's ``status``, ``data`` and ``error``.
        **arguments: Arguments of the child's ``create_context``; without one, the fields of its Context.

    Returns:
        The outcome, to be returned by the step.

    Raises:
        DefinitionError: If ``workflow`` is neither a string nor a workflow class, or if ``then`` is invalid.

    Example:
        Convert a file in a workflow of its own::

            @step(start=True)
            def convert(self):
                return run_subflow("convert_file", file_id=self.context.file_id, then=self.send)
    """
    if isinstance(workflow, type):
        name = str(declaration_of(workflow, "__workflow__", "a workflow", "@workflow(...)").name)
    elif isinstance(workflow, str):
        name = workflow
    else:
        raise DefinitionError(f"run_subflow({workflow!r}): give the name of a workflow or its class.")
    return Subflow(name, arguments, None if then is None else target_name(then, "run_subflow(then=...)"))
