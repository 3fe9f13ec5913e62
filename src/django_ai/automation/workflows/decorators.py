"""``@workflow``, ``@event_workflow`` and ``@step``: a class is checked and registered at import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from pydantic import BaseModel

from ..events.definitions import EventName, name_of
from ..events.event_keys import check_event_key
from ..events.limit_keys import check_context_keys
from ..events.names import check_namespace, check_subscription
from ..exceptions import DefinitionError
from ..queues.lanes import Priority, check_priority, check_queue, check_window_priority
from ..queues.registry import check_attempts
from ..state.contexts import context_class
from ..state.versions import check_version, migration_of
from ..values.callables import check_parameters, check_runnable
from ..values.classes import is_redefinition
from ..values.clock import Offset, check_duration, check_offset, check_recheck
from ..values.limits import Concurrency, DeclaredLimit, RateLimit, Singleton, Throttle, declared_limits
from ..values.retry import Retry
from ..values.windows import Batch, Debounce, declared_window
from .cancel_on import On, check_cancel_on
from .definitions import StepDefinition, WorkflowDefinition, register, registered_workflow
from .hooks import hook_of

if TYPE_CHECKING:
    from ..events.models import Event

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


def workflow(
    name: str,
    *,
    version: int | str = 1,
    default_retry: Retry | None = None,
    deadline: timedelta | None = None,
    queue: str | None = None,
    priority: Priority = 0,
    concurrency: Concurrency | Sequence[Concurrency] | None = None,
    throttle: Throttle | None = None,
    rate_limit: RateLimit | None = None,
    singleton: Singleton | None = None,
    cancel_on: Sequence[On] = (),
) -> Callable[[C], C]:
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
        deadline: How long a run may take in all, as a positive timedelta, counted from ``engine.start``. A run that has
            not ended by then fails, whatever it waits for, and enters its ``@on_fail``; a step that is running then is
            not interrupted. A parked run stays parked. Default: no limit.
        queue: Name of the queue of the runs: workers may be started for some queues only. Default ``"default"``.
        priority: A whole number from -100 to 100, or a function of the Context that returns one. Of the runs that are
            due the higher come first; each point counts as 30 s of waiting. Default 0.
        concurrency: How many runs may execute a step at the same time: a ``Concurrency``, or a list of them, one with a
            key and one for all. Others wait for their turn. Default: any number.
        throttle: How many runs may start per unit of time, as a ``Throttle``; others start later. Default: any number.
        rate_limit: How many runs may start per unit of time, as a ``RateLimit``; others are cancelled with the reason.
            Default: any number.
        singleton: At most one unfinished run, as a ``Singleton``. Default: any number.
        cancel_on: Events that cancel a run, as a list of ``On(...)``: the run ends as with ``engine.cancel`` when one
            of them occurs after ``engine.start``. The values of a match are those that the Context has before the first
            step. Default: none.

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
    what = f"@workflow({name!r})"
    limits = declared_limits(
        what, concurrency=concurrency, throttle=throttle, rate_limit=rate_limit, singleton=singleton
    )

    what = f"@workflow({name!r})"
    lane = {"queue": check_queue(queue, what), "priority": check_priority(priority, what, "context")}

    def decorate(cls: C) -> C:
        _register(cls, what, name, version, default_retry, limits, deadline=deadline, cancel_on=cancel_on, **lane)
        return cls

    return decorate


def event_workflow(
    event_name: EventName,
    *,
    offset: Offset | None = None,
    recheck: bool = False,
    name: str | None = None,
    version: int | str = 1,
    default_retry: Retry | None = None,
    namespace: str | None = None,
    ignores_claims: bool = False,
    debounce: Debounce | None = None,
    batch: Batch | None = None,
    deadline: timedelta | None = None,
    when: Callable[[Event], Any] | None = None,
    queue: str | None = None,
    priority: Priority = 0,
    concurrency: Concurrency | Sequence[Concurrency] | None = None,
    throttle: Throttle | None = None,
    rate_limit: RateLimit | None = None,
    singleton: Singleton | None = None,
    cancel_on: Sequence[On] = (),
) -> Callable[[C], C]:
    """Declare a class as a workflow that an event starts.

    The class has the form that ``@workflow`` describes; its ``create_context`` gets the ``event``. The run is inserted
    in the transaction in which the event occurs. With an offset it is inserted earlier, when the event is recorded: it
    has the status WAITING and moves with the event's date. It is withdrawn if the condition turns false before the
    event has occurred.

    Args:
        event_name: Name of the event, as a string, or its ``EventDefinition``; ``*`` in a name stands for any
            characters.
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
        debounce: Collect events until no more come, as a ``Debounce``, and start one run for all of them:
            ``create_context(cls, events)`` gets a list, in the order in which they occurred. Not together with
            ``offset`` or ``batch``. Default: one run for each event.
        batch: Collect events until there are enough, as a ``Batch``, and start one run for all of them. Default: one
            run for each event.
        deadline: How long a run may take in all, as a positive timedelta, counted from the occurrence; with an offset,
            from the date at which the run is to start; with ``debounce`` or ``batch``, from the end of the window. See
            ``@workflow``. Default: no limit.
        when: A function of the ``Event`` that returns whether a run is wanted; it may be ``async def``. It is called
            when the run is to start; if it returns a false value, the run is cancelled, with that reason. (Of the
            events of a window it selects those that the run gets.) If it raises, it is called again with a backoff;
            after five failures the run is parked. Default: every event.
        queue: Name of the queue of the runs: workers may be started for some queues only. Default ``"default"``.
        priority: A whole number from -100 to 100, or a function of the event that returns one, called when the run is
            inserted. Of the runs that are due the higher come first; each point counts as 30 s of waiting. Where code
            starts the workflow, without an event, a function is not called. Default 0.
        concurrency: How many runs may execute a step at the same time: a ``Concurrency``, or a list of them, one with a
            key and one for all. Others wait for their turn. Default: any number.
        throttle: How many runs may start per unit of time, as a ``Throttle``; others start later. Default: any number.
        rate_limit: How many runs may start per unit of time, as a ``RateLimit``; others are cancelled with the reason.
            Default: any number.
        singleton: At most one unfinished run, as a ``Singleton``. Default: any number.
        cancel_on: Events that cancel a run, as a list of ``On(...)``; see ``@workflow``. They count from the occurrence
            that starts the run, which itself cancels nothing; with an offset, from when the run was planned. Default:
            none.

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
    what = f"@event_workflow({name_of(event_name)!r})"
    pattern = check_subscription(name_of(event_name), "event_workflow")
    check_namespace(namespace, what)
    check_offset(offset, what)
    check_recheck(recheck, offset, what)
    _check_when(when, what)
    window = declared_window(what, debounce, batch)
    if window is not None:
        if offset:
            raise DefinitionError(f"{what}: an offset cannot be combined with debounce= or batch=; remove one of them.")
        check_event_key(window.key, what)
        check_window_priority(priority, what)
    queue, priority = check_queue(queue, what), check_priority(priority, what, "event")
    limits = declared_limits(
        what, concurrency=concurrency, throttle=throttle, rate_limit=rate_limit, singleton=singleton
    )

    def decorate(cls: C) -> C:
        if window is not None:
            _check_takes_events(cls, what)
        _register(
            cls,
            what,
            name or f"{cls.__module__}.{cls.__qualname__}",
            version,
            default_retry,
            limits,
            event_name=pattern,
            offset=offset or None,
            namespace=namespace,
            ignores_claims=bool(ignores_claims),
            recheck=recheck,
            window=window,
            deadline=deadline,
            cancel_on=cancel_on,
            when=when,
            queue=queue,
            priority=priority,
        )
        return cls

    return decorate


def _check_when(when: Any, what: str) -> None:
    """Raise ``DefinitionError`` unless ``when`` is None or a function that can be called with the event."""
    if when is None:
        return
    if not callable(when):
        raise DefinitionError(
            f"{what}: when={when!r} must be a function of the event, as in when=lambda event: event.entity.total > 100."
        )
    check_runnable(when, f"{what}: when")
    check_parameters(when, f"{what}: when", "event")


def _register(
    cls: type,
    what: str,
    name: str,
    version: int | str,
    default_retry: Retry | None,
    limits: tuple[DeclaredLimit, ...],
    *,
    deadline: timedelta | None,
    cancel_on: Sequence[On],
    **options: Any,
) -> None:
    if not inspect.isclass(cls):
        raise DefinitionError(f"{what} decorates a class, not {cls!r}.")
    what = f"{what} on {cls.__qualname__}"
    if len(name) > 200:
        raise DefinitionError(f"{what}: the name {name!r} is longer than 200 characters; give name=.")
    if default_retry is not None and not isinstance(default_retry, Retry):
        raise DefinitionError(f"{what}: default_retry={default_retry!r} must be a Retry(...).")
    if deadline is not None:
        check_duration(deadline, f"{what}: deadline")
    context = context_class(cls, what)
    check_context_keys(limits, what, context)
    steps = _steps_of(cls, what)
    starts = [each.name for each in steps.values() if each.start]
    if len(starts) != 1:
        raise DefinitionError(
            f"{what}: exactly one step must have start=True, as in @step(start=True); "
            + (f"these have it: {', '.join(map(repr, starts))}." if starts else "none has it.")
        )
    definition = WorkflowDefinition(
        name=name,
        version=check_version(version, what),
        migrate=migration_of(cls, what),
        cls=cls,
        context=context,
        steps=MappingProxyType(steps),
        start=starts[0],
        default_retry=default_retry or Retry(),
        on_fail=hook_of(cls, "__on_fail__", what),
        on_cancel=hook_of(cls, "__on_cancel__", what),
        deadline=deadline,
        limits=limits,
        cancel_on=check_cancel_on(cancel_on, context, what),
        **options,
    )
    previous = registered_workflow(name, definition.version)
    if previous is not None and not is_redefinition(previous.cls, cls):
        raise DefinitionError(
            f"{what}: the name {name!r} (version {definition.version}) belongs to "
            f"{previous.cls.__module__}.{previous.cls.__qualname__}. Give one of them another name= or version=."
        )
    register(definition)
    cls.__workflow__ = definition  # type: ignore[attr-defined]
    cls.__schedulable__ = definition  # type: ignore[attr-defined]


def _check_takes_events(cls: type, what: str) -> None:
    """Raise ``DefinitionError`` unless ``create_context`` of a workflow with a window takes ``events``."""
    create = getattr(cls, "create_context", None)
    if create is None:
        raise DefinitionError(
            f"{what} on {cls.__qualname__}: debounce= and batch= need a class method create_context(cls, events), "
            "which makes the Context of all events."
        )
    check_parameters(create, f"{what} on {cls.__qualname__}: create_context", "events")


def _steps_of(cls: type, what: str) -> dict[str, StepDefinition]:
    found = {}
    for attribute in dir(cls):
        definition = getattr(inspect.getattr_static(cls, attribute), "__step__", None)
        if definition is not None:
            if len(attribute) > 200:
                raise DefinitionError(f"{cls.__qualname__}: the step name {attribute!r} is longer than 200 characters.")
            if inspect.isfunction(method := inspect.getattr_static(cls, attribute)):
                check_parameters(method, f"{what}: @step", "self")
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

    The method takes ``self`` and returns an outcome: ``goto``, ``sleep``, ``wait``, ``wait_for_event``, ``wait_any``,
    ``wait_all``, ``run_subflow``, ``complete`` or ``fail``. The Context is ``self.context``. What the step writes to
    the database, the changes of its Context and its outcome are one commit. An attempt that raises is rolled back, but
    the changes of its Context are kept.

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
        DefinitionError: At import, if an argument is invalid, or if the method is a generator or has another
            parameter than ``self``.

    Example:
        A step that calls a slow service, outside any transaction::

            @step(atomic=False, timeout=timedelta(minutes=20), retry=Retry(max_attempts=8))
            def render(self):
                self.context.url = render_video(self.context.source, key=idempotency_key())
                return goto(self.publish)
    """
    check_attempts("@step", retry, timeout)

    def decorate(method: F) -> F:
        if not inspect.isfunction(method):
            raise DefinitionError(f"@step decorates a method of a workflow class, not {method!r}.")
        check_runnable(method, "@step")
        method.__step__ = StepDefinition(  # type: ignore[attr-defined]
            name=method.__name__, start=bool(start), retry=retry, atomic=bool(atomic), own_timeout=timeout
        )
        return method

    return decorate if function is None else decorate(function)
