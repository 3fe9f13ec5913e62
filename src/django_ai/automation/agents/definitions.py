"""What an agent class declares, as immutable definitions, and the register of all agents by name.

Unlike the run of a workflow, an agent that lives follows the code: it gets new handlers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ..conf import conf
from ..events.matching.match import Match
from ..events.subscriptions import Subscription, subscriptions
from ..exceptions import DefinitionError, UnknownAgentError
from ..queues.lanes import Priority, declare
from ..state.contexts import make_context
from ..state.versions import Migration, is_newer
from ..values.limits import DeclaredLimit
from ..values.retry import Retry

if TYPE_CHECKING:
    from ..events.models import Event
    from .models import AgentRun


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerDefinition(Subscription):
    """What ``@handler`` declares of a method: when it runs, for which events, and how.

    ``agent``: the name of its agent.
    """

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
    limits: tuple[DeclaredLimit, ...] = ()

    @property
    def timeout(self) -> timedelta:
        return self.own_timeout or conf().STEP_TIMEOUT

    @property
    def subscriber(self) -> tuple[str, str]:
        return "handler", f"{self.agent}.{self.method}"


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
    names_singleton: bool = False
    """Whether ``@agent`` was given ``singleton=``, True or False."""
    default_retry: Retry = field(default_factory=Retry)
    namespace: str | None = None
    version: str = "1"
    migrate: Migration | None = None
    queue: str = ""
    priority: Priority = 0

    def match_of(self, handler: HandlerDefinition) -> Match | None:
        """Return the match that routes events to ``handler``: its own, or the agent's."""
        return self.match if handler.match is None else handler.match

    def find_handler(self, method: str, event: Event, milestone: str) -> HandlerDefinition | None:
        """Return the handler that an execution calls.

        Its subscription was checked when the execution was inserted: the event may have another name by now.
        """
        found = [each for each in self.handlers if each.method == method and each.milestone == milestone]
        return next((each for each in found if each.matches(event)), found[0] if found else None)

    def retry_of(self, handler: HandlerDefinition) -> Retry:
        return handler.retry or self.default_retry

    def make_context(self, origin: Event | None, /, **arguments: Any) -> BaseModel:
        """Return a new Context, for the event that spawns the agent or for ``arguments``; see
        ``contexts.make_context``."""
        return make_context(self.cls, self.context, origin, arguments, f"The agent {self.name!r}")

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
        """Return whether ``create_context`` cannot be called with ``arguments`` because it needs an event."""
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
    """The subscription of an agent to an event that spawns it."""

    agent: AgentDefinition

    @property
    def subscriber(self) -> tuple[str, str]:
        return "agent", self.agent.name


_registry: dict[str, AgentDefinition] = {}


def find_agent(name: str) -> AgentDefinition:
    """Return an agent by its name. Raises ``UnknownAgentError`` with the nearest name."""
    found = _registry.get(name)
    if found is None:
        near = get_close_matches(name, _registry, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(repr, _registry)) or 'none'}."
        raise UnknownAgentError(f"No agent is called {name!r}. {hint}")
    return found


def registered_agent(name: str) -> AgentDefinition | None:
    """Return the agent that is registered under this name, or None."""
    return _registry.get(name)


def agent_of(run: AgentRun) -> AgentDefinition:
    """Return the definition that ``run`` continues with. Raises ``UnknownAgentError``, which names the fix."""
    definition = _registry.get(run.name)
    if definition is None:
        near = get_close_matches(run.name, _registry, n=1, cutoff=0.75)
        hint = f" Was it renamed to {near[0]!r}? Then name it {run.name!r} again, or restore" if near else " Restore"
        raise UnknownAgentError(
            f"{run}: no agent is called {run.name!r}.{hint} the class. The agent then resumes automatically."
        )
    check_release(run.version, definition, str(run))
    return definition


def check_release(version: str, definition: AgentDefinition, what: str) -> None:
    """Raise ``UnknownAgentError`` for an agent that was written by a newer release than this code."""
    if is_newer(version, definition.version):
        raise UnknownAgentError(
            f"{what} is of version {version!r}, and this worker's {definition.name!r} of version "
            f"{definition.version!r}: the agent belongs to a newer release; a worker of that release performs it."
        )


def has_handler(name: str, method: str, milestone: str) -> bool:
    """Return whether the agent ``name`` still has the handler of an older execution."""
    definition = _registry.get(name)
    return definition is not None and any(
        each.method == method and each.milestone == milestone for each in definition.handlers
    )


def all_agents() -> list[AgentDefinition]:
    return list(_registry.values())


def any_limits() -> bool:
    """Return whether any handler has limits."""
    return any(handler.limits for definition in _registry.values() for handler in definition.handlers)


def handlers_for(event: Event) -> Sequence[HandlerDefinition]:
    """Return the handlers of all agents that subscribe to ``event``."""
    return subscriptions.subscribed_to(HandlerDefinition, event.event_name, event.namespace)


def agents_spawned_by(event: Event) -> list[AgentDefinition]:
    """Return the agents that ``event`` spawns, each once, even if several of its patterns match."""
    found = subscriptions.subscribed_to(SpawnOn, event.event_name, event.namespace)
    return list({each.agent.name: each.agent for each in found}.values())


def register(definition: AgentDefinition) -> None:
    name, namespace = definition.name, definition.namespace
    _registry[name] = definition
    declare("agents", definition.queue, definition.priority)
    subscriptions.declare(HandlerDefinition, name, definition.handlers)
    spawning = [SpawnOn(event_name=each, namespace=namespace, agent=definition) for each in definition.spawn_on]
    subscriptions.declare(SpawnOn, name, spawning)


def unregister(definition: AgentDefinition) -> None:
    """Forget ``definition``: for tests that declare their own."""
    _registry.pop(definition.name, None)
    subscriptions.declare(HandlerDefinition, definition.name, ())
    subscriptions.declare(SpawnOn, definition.name, ())
