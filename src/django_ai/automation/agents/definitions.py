"""``@agent`` and ``@handler``: what a class declares, checked when it is imported.

A definition is immutable. Unlike a workflow's run, a living agent follows the code: a new handler is its handler, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..conf import conf
from ..events.matching.match import Match
from ..events.names import check_namespace, check_subscription
from ..events.subscriptions import Subscription, subscriptions
from ..exceptions import DefinitionError, UnknownAgentError
from ..queues.registry import declare_timeout
from ..state.contexts import context_class, make_context
from ..state.versions import Migration, check_version, is_newer, migration_of
from ..values.callables import check_synchronous
from ..values.classes import is_redefinition
from ..values.clock import Offset, check_duration, check_offset, check_recheck, offset_key
from ..values.retry import Retry

if TYPE_CHECKING:
    from ..events.models import Event
    from .models import AgentRun

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

ARGUMENTS = ("ctx", "context", "event", "events", "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerDefinition(Subscription):
    """What ``@handler`` declares of a method: when it runs, for which events, and how. ``agent``: the name of its
    agent."""

    agent: str = ""
    method: str
    position: int = 0
    takes: tuple[str, ...] = ()
    match: Match | None = None
    condition: Callable[..., Any] | None = None
    retry: Retry | None = None
    ignores_claims: bool = False
    atomic: bool = True
    own_timeout: timedelta | None = None

    @property
    def timeout(self) -> timedelta:
        return self.own_timeout or conf().STEP_TIMEOUT


@dataclass(frozen=True, slots=True)
class AgentDefinition:
    """What ``@agent`` declares of a class."""

    name: str
    cls: type
    context: type[BaseModel]
    handlers: tuple[HandlerDefinition, ...]
    spawn_on: tuple[str, ...] = ()
    match: Match | None = None
    singleton: bool = False
    says_singleton: bool = False
    """Whether the class says which of both it is."""
    default_retry: Retry = field(default_factory=Retry)
    namespace: str | None = None
    version: str = "1"
    migrate: Migration | None = None

    def match_of(self, handler: HandlerDefinition) -> Match | None:
        """Return what routes events to ``handler``: its own match, or the agent's."""
        return self.match if handler.match is None else handler.match

    def find_handler(self, method: str, event: Event, milestone: str) -> HandlerDefinition | None:
        """Return what an execution calls. Whether it hears the event was judged when the execution was made: the event
        may go by another name by now."""
        found = [each for each in self.handlers if each.method == method and each.milestone == milestone]
        return next((each for each in found if each.hears(event)), found[0] if found else None)

    def retry_of(self, handler: HandlerDefinition) -> Retry:
        return handler.retry or self.default_retry

    def make_context(self, origin: Event | None, /, **arguments: Any) -> BaseModel:
        """Return a new Context, for the event that spawns the agent or for ``arguments``; see
        ``contexts.make_context``."""
        return make_context(self.cls, self.context, origin, arguments)

    def context_by_hand(self, event: Event | None, /, **arguments: Any) -> BaseModel:
        """Return a new Context for an agent that code spawns. Where ``create_context`` needs an event and there is
        none, ``arguments`` are the fields of the Context.

        Raises what ``make_context`` raises, and ``DefinitionError`` where neither an event nor fields are given.
        """
        if event is not None or not self._needs_event(arguments):
            return self.make_context(event, **arguments)
        where = f"{self.cls.__qualname__}.create_context needs an event, and none was given"
        fields = ", ".join(self.context.model_fields)
        unknown = sorted(arguments.keys() - self.context.model_fields.keys())
        if unknown:
            raise DefinitionError(
                f"{where}; its Context has no field {', '.join(map(repr, unknown))} (it has: {fields}). Give event=, "
                "or the fields of the Context."
            )
        try:
            return self.context(**arguments)
        except ValidationError:
            if arguments:
                raise
            raise DefinitionError(f"{where}. Give event=, or the fields of the Context: {fields}.") from None

    def _needs_event(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether ``create_context`` cannot be called with ``arguments`` for want of an event."""
        create = getattr(self.cls, "create_context", None)
        parameters = [] if create is None else list(inspect.signature(create).parameters.values())
        if not parameters:
            return False
        first = next((each for each in parameters if each.name == "event"), parameters[0])
        variadic = first.kind in (first.VAR_POSITIONAL, first.VAR_KEYWORD, first.KEYWORD_ONLY)
        if first.default is not first.empty or first.name in arguments or (variadic and first.name != "event"):
            return False
        return first.name == "event" or arguments.keys() <= self.context.model_fields.keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnOn(Subscription):
    """What brings an agent to life."""

    agent: AgentDefinition


_registry: dict[str, AgentDefinition] = {}


def find_agent(name: str) -> AgentDefinition:
    """Return an agent by its name. Raises ``UnknownAgentError`` with the nearest name."""
    found = _registry.get(name)
    if found is None:
        near = get_close_matches(name, _registry, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(repr, _registry)) or 'none'}."
        raise UnknownAgentError(f"No agent is called {name!r}. {hint}")
    return found


def agent_of(run: AgentRun) -> AgentDefinition:
    """Return the definition that ``run`` goes on with. Raises ``UnknownAgentError``, which names the fix."""
    definition = _registry.get(run.name)
    if definition is None:
        near = get_close_matches(run.name, _registry, n=1, cutoff=0.75)
        hint = f" Is it {near[0]!r} now? Then call it {run.name!r} again, or" if near else ""
        raise UnknownAgentError(
            f"{run}: no agent is called {run.name!r}.{hint or ' To go on,'} bring the class back; then this goes on by "
            "itself."
        )
    check_release(run.version, definition, str(run))
    return definition


def check_release(version: str, definition: AgentDefinition, what: str) -> None:
    """Raise ``UnknownAgentError`` for an agent that newer code has written than this."""
    if is_newer(version, definition.version):
        raise UnknownAgentError(
            f"{what} is of version {version!r}, and this worker's {definition.name!r} of version "
            f"{definition.version!r}: the agent is of a newer release, and left to its workers."
        )


def has_handler(name: str, method: str, milestone: str) -> bool:
    """Say whether the agent ``name`` has a handler for an execution of before."""
    definition = _registry.get(name)
    return definition is not None and any(
        each.method == method and each.milestone == milestone for each in definition.handlers
    )


def all_agents() -> list[AgentDefinition]:
    return list(_registry.values())


def handlers_hearing(event: Event) -> Sequence[HandlerDefinition]:
    """Return the handlers of all agents that are for ``event``."""
    return subscriptions.hearing(HandlerDefinition, event.event_name, event.namespace)


def agents_spawned_by(event: Event) -> list[AgentDefinition]:
    """Return the agents that ``event`` brings to life, each once, whatever the number of its patterns."""
    found = subscriptions.hearing(SpawnOn, event.event_name, event.namespace)
    return list({each.agent.name: each.agent for each in found}.values())


def register(definition: AgentDefinition) -> None:
    name, namespace = definition.name, definition.namespace
    _registry[name] = definition
    subscriptions.declare(HandlerDefinition, name, definition.handlers)
    spawning = [SpawnOn(event_name=each, namespace=namespace, agent=definition) for each in definition.spawn_on]
    subscriptions.declare(SpawnOn, name, spawning)


def unregister(definition: AgentDefinition) -> None:
    """Forget ``definition``: for tests that declare their own."""
    _registry.pop(definition.name, None)
    subscriptions.declare(HandlerDefinition, definition.name, ())
    subscriptions.declare(SpawnOn, definition.name, ())


def agent(
    name: str,
    *,
    spawn_on: str | Iterable[str] | None = None,
    match: Mapping[str, Any] | None = None,
    singleton: bool | None = None,
    default_retry: Retry | None = None,
    namespace: str | None = None,
    version: int | str = 1,
) -> Callable[[C], C]:
    """Declare a class as an agent: a long-lived run that handles events, with a Context that it keeps.

    The class has a ``Context`` (a Pydantic model), methods with ``@handler``, and perhaps a classmethod
    ``create_context(cls, event)``. ``spawn_on``: the event, or events, that bring one to life (default: only
    ``AgentManager.spawn``). ``match``: which entities' events are routed to which agent, as lookups and values or
    expressions on its Context: ``{"guest_id": "{{ ctx.guest_id }}"}``; without it an agent hears the events of the
    entity that spawned it. ``singleton``: at most one lives for each match; what would spawn another is handed to it
    (default: each spawning event makes an agent of its own, and all of one match answer the events of that match).
    ``default_retry``: for handlers without a retry of their own. ``namespace``: only events in it spawn it, and its
    handlers and claims are for no other, unless they name one of their own.
    ``version``: raise it with a change of the Context that older code could not follow; living agents follow the code,
    by way of a static or class method ``migrate_context(data, from_version)`` (it must be pure: it may be called
    twice). Raises ``DefinitionError``.
    """
    if not isinstance(name, str) or not name or len(name) > 200:
        raise DefinitionError(f'@agent needs a name of 1 to 200 characters, as in @agent("journey"); got {name!r}.')
    what = f"@agent({name!r})"
    names = [] if spawn_on is None else [spawn_on] if isinstance(spawn_on, str) else list(spawn_on)
    patterns = tuple(check_subscription(each, f"agent({name!r}, spawn_on=...)") for each in names)
    check_namespace(namespace, what)
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
            raise DefinitionError(f"{where}: it has no handler; decorate its methods with @handler(...).")
        definition = AgentDefinition(
            name=name,
            cls=cls,
            context=context,
            handlers=handlers,
            spawn_on=patterns,
            match=None if match is None else Match.of(match, where, context),
            singleton=bool(singleton),
            says_singleton=singleton is not None,
            default_retry=default_retry or Retry(),
            namespace=namespace,
            version=check_version(version, where),
            migrate=migration_of(cls, where),
        )
        previous = _registry.get(name)
        if previous is not None and not is_redefinition(previous.cls, cls):
            raise DefinitionError(
                f"{where}: the name {name!r} is taken by {previous.cls.__module__}.{previous.cls.__qualname__}. "
                "Give one of them another name."
            )
        register(definition)
        cls.__agent__ = definition  # type: ignore[attr-defined]
        return cls

    return decorate


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
            raise DefinitionError(f"{what}: {method} handles {declared['event_name']!r} twice at the same offset.")
        seen.add(key)
        own = None if match is None else Match.of(match, f"{what}: @handler on {method}", context)
        yield HandlerDefinition(method=method, position=position, match=own, **declared)


def vars_in_order(cls: type) -> list[str]:
    """Return the attributes of ``cls`` and its bases in the order of their definition, the furthest base first."""
    return list(dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base)))


def handler(
    event_name: str,
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
) -> Callable[[F], F]:
    """Declare a method as the agent's answer to an event.

    It takes what it names: ``ctx`` (or ``context``: its state; changes are kept, also those of a try that fails),
    ``event``, ``events`` (a list of it), ``run`` (the ``AgentRun``), or nothing. ``offset``: that much before
    (negative) or after the event's date (of an immediate event: the moment of its save), a timedelta or
    relativedelta. ``recheck``: ask the event's condition again at an offset after its date, and skip it if that is
    false then. ``match``: how this event finds its agent, where the agent's own ``match`` does not fit its entity.
    ``condition``: a function of ``event`` and ``ctx``; it is asked when the handler is about to run. ``retry``: how
    often to try when it raises (default: the agent's ``default_retry``, else 3 attempts). ``ignores_claims``: run
    also when another run has claimed the event. ``atomic``: run in one transaction with its progress, so that its
    database writes are kept exactly once (default); ``False`` for slow calls to the outside. ``timeout``: how long it
    may run (default ``AUTOMATION["STEP_TIMEOUT"]``, 5 min). ``namespace``: only events in it (default: what its
    agent says; ``"*"``: any).

    The handlers of one agent run one after the other. One method may handle several events. Raises ``DefinitionError``.
    """
    what = f"@handler({event_name!r})"
    event_name = check_subscription(event_name, "handler")
    check_namespace(namespace, what)
    check_offset(offset, what)
    check_recheck(recheck, offset, what)
    if retry is not None and not isinstance(retry, Retry):
        raise DefinitionError(f"{what}: retry={retry!r} must be a Retry(...).")
    if timeout is not None:
        check_duration(timeout, f"{what}: timeout")
        declare_timeout(timeout)
    if match is not None:
        Match.of(match, what)
    asks = None if condition is None else _asking(condition, what)

    def decorate(method: F) -> F:
        if not inspect.isfunction(method):
            raise DefinitionError(f"{what} decorates a method of an agent class, not {method!r}.")
        check_synchronous(method, what)
        if len(method.__name__) > 200:
            raise DefinitionError(f"{what}: the name {method.__name__!r} is longer than 200 characters.")
        declared = {
            "event_name": event_name,
            "takes": _takes(method, what),
            "offset": offset or None,
            "condition": asks,
            "retry": retry,
            "ignores_claims": bool(ignores_claims),
            "atomic": bool(atomic),
            "own_timeout": timeout,
            "namespace": namespace,
            "recheck": recheck,
        }
        # Decorators apply from below, and people read from above.
        method.__handlers__ = ((declared, match), *getattr(method, "__handlers__", ()))  # type: ignore[attr-defined]
        return method

    return decorate


def _takes(method: Callable[..., Any], what: str) -> tuple[str, ...]:
    """Return which arguments a handler names. Raises ``DefinitionError`` for one that nobody knows."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return ARGUMENTS
    unknown = [
        each.name
        for each in parameters
        if each.name not in ARGUMENTS and each.default is each.empty and each.kind is not each.VAR_POSITIONAL
    ]
    if unknown:
        raise DefinitionError(
            f"{what}: {method.__qualname__} takes {', '.join(map(repr, unknown))}, which nobody gives it. A handler "
            f"takes self and any of {', '.join(ARGUMENTS)}."
        )
    return tuple(each.name for each in parameters if each.name in ARGUMENTS)


def _asking(condition: Any, what: str) -> Callable[..., Any]:
    """Return ``condition`` as a function that is called with every argument by its name."""
    if not callable(condition):
        raise DefinitionError(f"{what}: condition={condition!r} must be a function of event and ctx.")
    check_synchronous(condition, f"{what}: condition")
    parameters = list(inspect.signature(condition).parameters.values())
    names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if set(names) <= set(ARGUMENTS):
        return lambda **given: condition(**{name: given[name] for name in names})
    if len(names) == 2:
        return lambda **given: condition(given["event"], given["ctx"])
    raise DefinitionError(f"{what}: condition takes {', '.join(names)}; it must be a function of event and ctx.")
