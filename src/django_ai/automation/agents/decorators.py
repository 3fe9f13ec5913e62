"""``@agent`` and ``@handler``: a class is checked and registered at import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from ..events.definitions import EventDefinition, EventName, name_of
from ..events.limit_keys import check_context_keys
from ..events.matching.match import Match
from ..events.names import check_namespace, check_subscription
from ..exceptions import DefinitionError
from ..queues.lanes import Priority, check_priority, check_queue
from ..queues.registry import check_attempts
from ..state.contexts import context_class
from ..state.versions import check_version, migration_of
from ..values.callables import check_runnable, taken_arguments
from ..values.classes import is_redefinition
from ..values.clock import Offset, check_offset, check_recheck, offset_key
from ..values.limits import Concurrency, RateLimit, Throttle, declared_limits
from ..values.retry import Retry
from .definitions import AgentDefinition, HandlerDefinition, register, registered_agent

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
Ctx = TypeVar("Ctx", bound=BaseModel)

HANDLER_ARGUMENTS = ("ctx", "context", "event", "events", "run")


class Agent(Generic[Ctx]):
    """Optional base of agent classes: it tells type checkers the class of ``self.context``.

    At run time it adds nothing. An agent needs ``@agent`` with it as without it.

    Attributes:
        context: The Context of the agent: a Pydantic model of the class that is given in brackets.

    Example:
        A type checker knows that ``self.context.number`` is an int::

            class ComplaintsContext(BaseModel):
                customer_id: int
                number: int = 0

            @agent("complaints", spawn_on="complaint_opened")
            class Complaints(Agent[ComplaintsContext]):
                Context = ComplaintsContext

                @handler("complaint_opened")
                def count(self) -> None:
                    self.context.number += 1
    """

    context: Ctx


def agent(
    name: str,
    *,
    spawn_on: EventName | Iterable[EventName] | None = None,
    match: Mapping[str, Any] | None = None,
    singleton: bool | None = None,
    default_retry: Retry | None = None,
    namespace: str | None = None,
    version: int | str = 1,
    queue: str | None = None,
    priority: Priority = 0,
) -> Callable[[C], C]:
    """Declare a class as an agent: a long-lived run that handles events, with a Context that it keeps.

    The class has a ``Context`` (a Pydantic model), methods decorated with ``@handler``, and optionally a class method
    ``create_context(cls, event)``. When a ``spawn_on`` event occurs, the agent's row is inserted in the same
    transaction; a worker then makes its Context. Agents follow the code: a handler that is deployed later is theirs,
    too.

    Args:
        name: Name of the agent, a string of 1 to 200 characters. Runs are stored under it.
        spawn_on: Name of the event that spawns an agent, as a string, or its ``EventDefinition``, or a list of them;
            ``*`` in a name stands for any characters. Default: only ``AgentManager.spawn`` spawns one.
        match: Which events are routed to which agent: a dict of lookups on the event's entity (on the payload of a
            ``FreeEvent``) and values or expressions on the Context, as in ``{"customer_id": "{{ ctx.customer_id }}"}``.
            Default: the events of the entity that spawned the agent.
        singleton: Let at most one agent live for each match; an event that would spawn a second one is handled by the
            first. Default: each spawning event makes an agent of its own.
        default_retry: The ``Retry`` of all handlers that have none of their own. Default: 3 attempts, with pauses of 1
            s and 2 s.
        namespace: Only events in this namespace spawn the agent, as a string; its handlers and claims then use it too,
            unless they name another. Default: events in any namespace.
        version: A whole number or a string. Raise it with a change of the Context that older code could not follow, and
            give the class a static or class method ``migrate_context(data, from_version)`` that returns the new
            Context. It must have no side effects: it may be called twice. Default 1.
        queue: Name of the queue of the agent and of all its handlers, which one worker runs one after the other:
            workers may be started for some queues only. Default ``"default"``.
        priority: A whole number from -100 to 100, or a function of the spawning event that returns one, called when the
            agent is inserted. Of the agents that are due the higher come first; each point counts as 30 s of waiting.
            Where code spawns the agent without an event, a function is not called. Default 0.

    Returns:
        A decorator that registers the class and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument or the class is invalid, or if another class has the name.

    Example:
        One agent for each customer counts complaints::

            by_customer = {"customer_id": "{{ ctx.customer_id }}"}

            @agent("complaints", spawn_on="complaint_opened", match=by_customer, singleton=True)
            class Complaints:
                class Context(BaseModel):
                    customer_id: int
                    number: int = 0

                @classmethod
                def create_context(cls, event):
                    return cls.Context(customer_id=event.entity.customer_id)

                @handler("complaint_opened")
                def count(self, ctx):
                    ctx.number += 1
    """
    if not isinstance(name, str) or not name or len(name) > 200:
        raise DefinitionError(f'@agent needs a name of 1 to 200 characters, as in @agent("journey"); got {name!r}.')
    what = f"@agent({name!r})"
    patterns = tuple(check_subscription(each, f"agent({name!r}, spawn_on=...)") for each in _names(spawn_on))
    check_namespace(namespace, what)
    queue, priority = check_queue(queue, what), check_priority(priority, what, "event")
    if default_retry is not None and not isinstance(default_retry, Retry):
        raise DefinitionError(f"{what}: default_retry={default_retry!r} must be a Retry(...).")

    def decorate(cls: C) -> C:
        if not inspect.isclass(cls):
            raise DefinitionError(f"{what} decorates a class, not {cls!r}.")
        where = f"{what} on {cls.__qualname__}"
        context = context_class(cls, where)
        handlers = tuple(
            replace(each, agent=name, namespace=namespace if each.namespace is None else each.namespace)
            for each in _handlers_of(cls, where, context)
        )
        if not handlers:
            raise DefinitionError(f"{where}: it has no handler; decorate a method with @handler(...).")
        definition = AgentDefinition(
            name=name,
            cls=cls,
            context=context,
            handlers=handlers,
            spawn_on=patterns,
            match=None if match is None else Match.of(match, where, context),
            singleton=bool(singleton),
            names_singleton=singleton is not None,
            default_retry=default_retry or Retry(),
            namespace=namespace,
            version=check_version(version, where),
            migrate=migration_of(cls, where),
            queue=queue,
            priority=priority,
        )
        previous = registered_agent(name)
        if previous is not None and not is_redefinition(previous.cls, cls):
            raise DefinitionError(
                f"{where}: the name {name!r} belongs to {previous.cls.__module__}.{previous.cls.__qualname__}. "
                "Give one of them another name."
            )
        register(definition)
        cls.__agent__ = definition  # type: ignore[attr-defined]
        return cls

    return decorate


def _names(events: EventName | Iterable[EventName] | None) -> list[str]:
    """Return the names of the events that spawn an agent: none, one or several."""
    if events is None:
        return []
    return [name_of(each) for each in ([events] if isinstance(events, str | EventDefinition) else events)]


def _handlers_of(cls: type, what: str, context: type[BaseModel]) -> Iterable[HandlerDefinition]:
    seen = set()
    found = [
        (method, declared)
        for method in vars_in_order(cls)
        for declared in getattr(inspect.getattr_static(cls, method), "__handlers__", ())
    ]
    for position, (method, (declared, match)) in enumerate(found):
        key = (method, declared["event_name"], offset_key(declared["offset"]))
        if key in seen:
            raise DefinitionError(
                f"{what}: {method} handles {declared['event_name']!r} twice at the same offset; remove one @handler."
            )
        seen.add(key)
        own = None if match is None else Match.of(match, f"{what}: @handler on {method}", context)
        check_context_keys(declared["limits"], f"{what}: @handler on {method}", context)
        yield HandlerDefinition(method=method, position=position, match=own, **declared)


def vars_in_order(cls: type) -> list[str]:
    """Return the attributes of ``cls`` and its bases in the order of their definition, the furthest base first."""
    return list(dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base)))


def handler(
    event_name: EventName,
    *,
    offset: Offset | None = None,
    recheck: bool = False,
    match: Mapping[str, Any] | None = None,
    condition: Callable[..., Any] | None = None,
    retry: Retry | None = None,
    ignores_claims: bool = False,
    atomic: bool = True,
    timeout: timedelta | None = None,
    namespace: str | None = None,
    concurrency: Concurrency | Sequence[Concurrency] | None = None,
    throttle: Throttle | None = None,
    rate_limit: RateLimit | None = None,
) -> Callable[[F], F]:
    """Declare a method of an agent that handles an event.

    The method takes ``self`` and any of these, by name: ``ctx`` or ``context`` (the Context), ``event`` (the
    ``Event``), ``events`` (a list of it) and ``run`` (the ``AgentRun``). The handlers of one agent never run at the
    same time. What a handler writes to the database, the changes of its Context and its progress are one commit. An
    attempt that raises is rolled back, but the changes of its Context are kept. One method may handle several events.

    Args:
        event_name: Name of the event, as a string, or its ``EventDefinition``; ``*`` in a name stands for any
            characters.
        offset: When to run, counted from the event's date: a timedelta (elapsed time) or a relativedelta (wall clock),
            negative before the date, positive after it. The date of an immediate event is the moment of its save.
            Default: at the event.
        recheck: Evaluate the event's condition again at an offset after the date, and skip the handler if it is false
            by then. Needs ``offset``. Default False.
        match: How this event is routed to its agent, as a dict like the agent's ``match``. Default: the agent's
            ``match``.
        condition: A function of ``event`` and ``ctx`` that returns a bool; it may be ``async def``. It is called when
            the handler is about to run; if it returns False the handler is skipped. Default: always run.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: the agent's ``default_retry``.
        ignores_claims: Run even if another run has claimed the event. Default False.
        atomic: Commit the handler's database writes together with its progress, exactly once. Default True. Use False
            for slow external calls: the handler then holds no transaction and may write twice.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).
        namespace: Only events in this namespace, as a string; ``"*"`` for any. Default: that of the agent.
        concurrency: How many executions may run at the same time, of all agents of the class: a ``Concurrency``, or a
            list of them, one with a key and one for all. Others wait for their turn, and the agent continues with the
            rest of its mailbox. Default: any number.
        throttle: How many executions may start per unit of time, as a ``Throttle``; others start later. Default: any
            number.
        rate_limit: How many executions may start per unit of time, as a ``RateLimit``; others are skipped with the
            reason. Default: any number.

    Returns:
        A decorator that marks the method as a handler and returns it otherwise unchanged.

    Raises:
        DefinitionError: At import, if an argument is invalid, or if the method is a generator or has an
            unknown parameter.

    Example:
        Call the customer back two hours after a complaint, unless it is closed by then::

            @handler("complaint_opened", offset=timedelta(hours=2), recheck=True)
            def call_back(self, ctx, event):
                Task.objects.create(customer_id=ctx.customer_id, text=f"Call about {event.entity}")
    """
    what = f"@handler({name_of(event_name)!r})"
    pattern = check_subscription(name_of(event_name), "handler")
    check_namespace(namespace, what)
    check_offset(offset, what)
    check_recheck(recheck, offset, what)
    check_attempts(what, retry, timeout)
    if match is not None:
        Match.of(match, what)
    limits = declared_limits(what, concurrency=concurrency, throttle=throttle, rate_limit=rate_limit)
    asks = None if condition is None else _asking(condition, what)

    def decorate(method: F) -> F:
        if not inspect.isfunction(method):
            raise DefinitionError(f"{what} decorates a method of an agent class, not {method!r}.")
        check_runnable(method, what)
        if len(method.__name__) > 200:
            raise DefinitionError(f"{what}: the name {method.__name__!r} is longer than 200 characters.")
        declared = {
            "event_name": pattern,
            "takes": taken_arguments(method, what, HANDLER_ARGUMENTS, is_method=True),
            "offset": offset or None,
            "condition": asks,
            "retry": retry,
            "ignores_claims": bool(ignores_claims),
            "atomic": bool(atomic),
            "own_timeout": timeout,
            "namespace": namespace,
            "recheck": recheck,
            "limits": limits,
        }
        # Decorators apply from the bottom up; the order of handlers is that of the source.
        method.__handlers__ = ((declared, match), *getattr(method, "__handlers__", ()))  # type: ignore[attr-defined]
        return method

    return decorate


def _asking(condition: Any, what: str) -> Callable[..., Any]:
    """Return ``condition`` as a function that is called with every argument by its name."""
    if not callable(condition):
        raise DefinitionError(f"{what}: condition={condition!r} must be a function of event and ctx.")
    check_runnable(condition, f"{what}: condition")
    parameters = list(inspect.signature(condition).parameters.values())
    names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if set(names) <= set(HANDLER_ARGUMENTS):
        return lambda **given: condition(**{name: given[name] for name in names})
    if len(names) == 2:
        return lambda **given: condition(given["event"], given["ctx"])
    raise DefinitionError(f"{what}: condition takes ({', '.join(names)}); it must be a function of event and ctx.")
