"""``@workflow``, ``@event_workflow``, ``@step`` and ``@on_fail``: a class is checked and registered at import."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Generic, TypeVar, overload

from pydantic import BaseModel

from ..events.names import check_namespace, check_subscription
from ..exceptions import DefinitionError
from ..queues.registry import declare_timeout
from ..state.contexts import context_class
from ..state.versions import check_version, migration_of
from ..values.callables import check_parameters, check_synchronous
from ..values.classes import is_redefinition
from ..values.clock import Offset, check_duration, check_offset, check_recheck
from ..values.retry import Retry
from .definitions import StepDefinition, WorkflowDefinition, register, registered_workflow

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
Ctx = TypeVar("Ctx", bound=BaseModel)


class Workflow(Generic[Ctx]):
    """Optional base of workflow classes: it tells type checkers the class of ``self.context``.

    At run time it adds nothing. A workflow needs ``@workflow`` or ``@event_workflow`` with it as without it.

    Attributes:
        context: The Context of the run: a Pydantic model of the class that is given in brackets.

    Example:
        A type checker knows that ``self.context.pages`` is an int::

            class PrintContext(BaseModel):
                pages: int = 0

            @workflow("print_catalogue")
            class PrintCatalogue(Workflow[PrintContext]):
                Context = PrintContext

                @step(start=True)
                def count(self) -> Outcome:
                    self.context.pages += 1
                    return complete()
    """

    context: Ctx


def workflow(name: str, *, version: int | str = 1, default_retry: Retry | None = None) -> Callable[[C], C]:
    """Declare a class as a workflow that code starts with ``engine.start(name, ...)``.

    The class has a ``Context`` (a Pydantic model), methods decorated with ``@step`` of which exactly one has
    ``start=True``, and optionally a class method ``create_context(cls, **arguments)``.

    Args:
        name: Name of the workflow, a string of 1 to 200 characters. Runs are stored under it.
        version: A whole number or a string. Raise it with a change that running runs could not follow. Then keep the
            old class until its runs have ended, or give the new one a static or class method ``migrate_context(data,
            from_version)`` that returns their new Context. It must have no side effects: it may be called twice.
            Default 1.
        default_retry: The ``Retry`` of all steps that have none of their own. Default: 3 attempts, with pauses of 1 s
            and 2 s.

    Returns:
        A decorator that registers the class and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument or the class is invalid, or if another class has the name.

    Example:
        A workflow of one step::

            @workflow("build_report", version=2)
            class BuildReport:
                class Context(BaseModel):
                    month: str

                @step(start=True)
                def build(self):
                    Report.objects.create(month=self.context.month)
                    return complete()
    """
    if not isinstance(name, str) or not name:
        raise DefinitionError(f'@workflow needs a name, as in @workflow("reindex"); got {name!r}.')

    def decorate(cls: C) -> C:
        _register(cls, f"@workflow({name!r})", name, version, default_retry)
        return cls

    return decorate


def event_workflow(
    event_name: str,
    *,
    offset: Offset | None = None,
    recheck: bool = False,
    name: str | None = None,
    version: int | str = 1,
    default_retry: Retry | None = None,
    namespace: str | None = None,
    ignores_claims: bool = False,
) -> Callable[[C], C]:
    """Declare a class as a workflow that an event starts.

    The class has the form that ``@workflow`` describes; its ``create_context`` gets the ``event``. The run is inserted
    in the transaction in which the event occurs. With an offset it is inserted earlier, when the event is recorded: it
    has the status WAITING and moves with the event's date. It is withdrawn if the condition turns false before the
    event has occurred.

    Args:
        event_name: Name of the event, as a string; ``*`` in it stands for any characters.
        offset: When to start, counted from the event's date: a timedelta (elapsed time) or a relativedelta (wall
            clock), negative before the date, positive after it. Default: at the event.
        recheck: Evaluate the event's condition again when the run is to start after the date, and cancel the run if it
            is false by then. Needs ``offset``. Default False.
        name: Name under which runs are stored, a string of at most 200 characters. Default: the module and the
            qualified name of the class. Set it to the old name when you move or rename the class.
        version: A whole number or a string; see ``@workflow``. Default 1.
        default_retry: The ``Retry`` of all steps that have none of their own. Default: 3 attempts, with pauses of 1 s
            and 2 s.
        namespace: Only events in this namespace, as a string; the waits and claims of the run then use it too, unless
            they name another. Default: events in any namespace.
        ignores_claims: Start even if another run has claimed the event. Default False.

    Returns:
        A decorator that registers the class and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument or the class is invalid, or if another class has the name.

    Example:
        Send a reminder two days before an invoice is overdue::

            @event_workflow("invoice_overdue", offset=timedelta(days=-2))
            class RemindToPay:
                class Context(BaseModel):
                    entity_id: int

                @step(start=True)
                def remind(self):
                    Reminder.objects.create(invoice_id=self.context.entity_id)
                    return complete()
    """
    what = f"@event_workflow({event_name!r})"
    event_name = check_subscription(event_name, "event_workflow")
    check_namespace(namespace, what)
    check_offset(offset, what)
    check_recheck(recheck, offset, what)

    def decorate(cls: C) -> C:
        _register(
            cls,
            what,
            name or f"{cls.__module__}.{cls.__qualname__}",
            version,
            default_retry,
            event_name=event_name,
            offset=offset or None,
            namespace=namespace,
            ignores_claims=bool(ignores_claims),
            recheck=recheck,
        )
        return cls

    return decorate


def _register(
    cls: type,
    what: str,
    name: str,
    version: int | str,
    default_retry: Retry | None,
    **start: Any,
) -> None:
    if not inspect.isclass(cls):
        raise DefinitionError(f"{what} decorates a class, not {cls!r}.")
    what = f"{what} on {cls.__qualname__}"
    if len(name) > 200:
        raise DefinitionError(f"{what}: the name {name!r} is longer than 200 characters; give name=.")
    if default_retry is not None and not isinstance(default_retry, Retry):
        raise DefinitionError(f"{what}: default_retry={default_retry!r} must be a Retry(...).")
    context = context_class(cls, what)
    steps = _steps_of(cls)
    starts = [each.name for each in steps.values() if each.start]
    if len(starts) != 1:
        raise DefinitionError(
            f"{what}: exactly one step must have start=True, as in @step(start=True); "
            + (f"these have it: {', '.join(map(repr, starts))}." if starts else "none has it.")
        )
    hooks = [attribute for attribute in dir(cls) if getattr(getattr(cls, attribute), "__on_fail__", False)]
    if len(hooks) > 1:
        raise DefinitionError(f"{what}: only one method can be @on_fail, and these are: {', '.join(map(repr, hooks))}.")
    if hooks:
        _check_hook(inspect.getattr_static(cls, hooks[0]), f"{what}: @on_fail")
    definition = WorkflowDefinition(
        name=name,
        version=check_version(version, what),
        migrate=migration_of(cls, what),
        cls=cls,
        context=context,
        steps=MappingProxyType(steps),
        start=starts[0],
        default_retry=default_retry or Retry(),
        on_fail=hooks[0] if hooks else None,
        **start,
    )
    previous = registered_workflow(name, definition.version)
    if previous is not None and not is_redefinition(previous.cls, cls):
        raise DefinitionError(
            f"{what}: the name {name!r} (version {definition.version}) belongs to "
            f"{previous.cls.__module__}.{previous.cls.__qualname__}. Give one of them another name= or version=."
        )
    register(definition)
    cls.__workflow__ = definition  # type: ignore[attr-defined]


def _check_hook(method: Any, what: str) -> None:
    """Raise ``DefinitionError`` if the ``@on_fail`` method of a class cannot be called with the error."""
    if inspect.isfunction(method):
        check_parameters(method, what, "self", "error")
    elif isinstance(method, classmethod):
        check_parameters(method.__func__, what, "cls", "error")
    elif isinstance(method, staticmethod | functools.partial) or not hasattr(type(method), "__get__"):
        check_parameters(method, what, "error")


def _steps_of(cls: type) -> dict[str, StepDefinition]:
    found = {}
    for attribute in dir(cls):
        definition = getattr(inspect.getattr_static(cls, attribute), "__step__", None)
        if definition is not None:
            if len(attribute) > 200:
                raise DefinitionError(f"{cls.__qualname__}: the step name {attribute!r} is longer than 200 characters.")
            found[attribute] = replace(definition, name=attribute)
    return found


@overload
def step(function: F, /) -> F: ...


@overload
def step(
    *,
    start: bool = False,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
) -> Callable[[F], F]: ...


def step(
    function: Any = None,
    *,
    start: bool = False,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
) -> Any:
    """Declare a method as a step of its workflow.

    The method takes ``self`` and returns an outcome: ``goto``, ``sleep``, ``wait``, ``wait_for_event``, ``complete``,
    ``fail`` or ``run_subflow``. The Context is ``self.context``. What the step writes to the database, the changes of
    its Context and its outcome are one commit. An attempt that raises is rolled back, but the changes of its Context
    are kept.

    Args:
        function: The method, where the decorator is used without brackets: ``@step``.
        start: The workflow starts with this step. Default False.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: the workflow's ``default_retry``.
        atomic: Commit the step's database writes together with its progress, exactly once. Default True. Use False for
            slow external calls: the step then holds no transaction and may write twice.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).

    Returns:
        The method, marked as a step and otherwise unchanged; or a decorator that does so.

    Raises:
        DefinitionError: At import, if an argument is invalid, or if the method is async or a generator.

    Example:
        A step that calls a slow service, outside any transaction::

            @step(atomic=False, timeout=timedelta(minutes=20), retry=Retry(max_attempts=8))
            def render(self):
                self.context.url = render_video(self.context.source, key=idempotency_key())
                return goto(self.publish)
    """
    if retry is not None and not isinstance(retry, Retry):
        raise DefinitionError(f"@step: retry={retry!r} must be a Retry(...).")
    if timeout is not None:
        check_duration(timeout, "@step: timeout")
        declare_timeout(timeout)

    def decorate(method: F) -> F:
        if not inspect.isfunction(method):
            raise DefinitionError(f"@step decorates a method of a workflow class, not {method!r}.")
        check_synchronous(method, "@step")
        method.__step__ = StepDefinition(  # type: ignore[attr-defined]
            name=method.__name__, start=bool(start), retry=retry, atomic=bool(atomic), own_timeout=timeout
        )
        return method

    return decorate if function is None else decorate(function)


def on_fail(method: F) -> F:
    """Declare a method ``(self, error)`` that is called when its run has failed for good.

    It runs in the transaction that ends the run: its database writes commit together with the failure. If it raises,
    the error is logged and the run fails all the same.

    Args:
        method: The method. ``error`` is a string: the reason that was given to ``fail()``, or the traceback of the last
            attempt, whose last line names the exception.

    Returns:
        The method, unchanged.

    Raises:
        DefinitionError: At import, if the method is async, is a generator or cannot be called with the error.

    Example:
        Tell the accountants::

            @on_fail
            def report(self, error):
                Task.objects.create(team="accounting", text=error.splitlines()[-1])
    """
    check_synchronous(method, "@on_fail")
    method.__on_fail__ = True  # type: ignore[attr-defined]
    return method
