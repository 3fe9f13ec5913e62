"""Routes: how an event finds the agents that it is for, however many there are.

Each distinct match of an agent's handlers gives keys, made of the values in its Context; they are rows with an index.
An event's entity gives the same keys, one for each shape that the code knows, and one query finds the agents. A handler
without any match hears the entity that spawned its agent; where that entity does not declare the event, it hears any.
Beside these a singleton has one row whose key is unique: two lives for one match cannot both be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from django.apps import apps
from django.db import connections
from pydantic import BaseModel

from ..db.errors import is_database_failure
from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..events.definitions import is_family, sources_of
from ..events.matching.match import Address, Match, address, entity_keys
from ..events.matching.typed_values import canonical
from ..events.models import Event
from ..exceptions import AutomationError, ContextError, SingletonTakenError
from ..values.digests import digest
from ..values.text import trace_of
from .definitions import AgentDefinition, HandlerDefinition
from .models import AgentRoute, AgentRun

Keys = frozenset[str]


def scope_of(definition: AgentDefinition, match: Match) -> str:
    """Return what keeps the keys of one match of one agent apart from all others."""
    return _scope(definition.name, match.text)


@lru_cache(maxsize=4096)
def _scope(name: str, match: str) -> str:
    return digest("agent", name, match)


def own_labels(entity_type: str, pattern: str) -> list[str]:
    """Return under which labels the entity's family (its model, proxies, parents, children) declares events that
    ``pattern`` means."""
    try:
        model = apps.get_model(entity_type) if entity_type else None
    except (LookupError, ValueError):
        return []
    if model is None:
        return []
    owners = {each.label: each.owner for each in sources_of(pattern)}
    return sorted(label for label, owner in owners.items() if is_family(owner, model))


def _own(name: str, label: str, entity_id: str) -> str:
    return digest("agent's own", name, label, entity_id)


def _any(name: str, pattern: str) -> str:
    return digest("agent's any", name, pattern)


# -- the agent's side --------------------------------------------------------------------------------------------------


def keys_of(definition: AgentDefinition, run: AgentRun, context: BaseModel) -> Keys:
    """Return the keys under which events find the agent while its Context is as it is."""
    found: set[str] = set()
    for handler in definition.handlers:
        match = definition.match_of(handler)
        if match is None:
            labels = own_labels(run.entity_type, handler.event_name)
            found |= {_own(definition.name, label, run.entity_id) for label in labels} or {
                _any(definition.name, handler.event_name)
            }
        else:
            found |= set(where(definition, handler, match, context).keys)
    return frozenset(found)


def where(definition: AgentDefinition, handler: HandlerDefinition, match: Match, context: BaseModel) -> Address:
    """Return where the events that ``handler`` hears are found for an agent with this Context. Raises ``ContextError``
    for whatever the Context's own code raises."""
    sources = sources_of(handler.event_name)
    with _reading(definition):
        return address(scope_of(definition, match), match.values_from(context), sources, spread=True)


@contextmanager
def _reading(definition: AgentDefinition) -> Iterator[None]:
    """Turn what code of the project raises when a Context is read into an error of that Context."""
    try:
        yield
    except AutomationError:
        raise
    except Exception as error:
        if is_database_failure(error, connections[alias_of(AgentRun)]):
            raise
        raise ContextError(f"The match of {definition.name!r} cannot be read.\n{trace_of(error)}") from error


def singleton_key(definition: AgentDefinition, run: AgentRun, context: BaseModel) -> str | None:
    """Return what only one living agent may have, or None where there may be many."""
    if not definition.singleton:
        return None
    if definition.match is None:
        return digest("singleton", definition.name, run.entity_type, run.entity_id)
    with _reading(definition):
        values = definition.match.values_from(context)
        parts = [part for name, value in sorted(values.items()) for part in (name, canonical(_settled(value)))]
    return digest("singleton", definition.name, *parts)


def _settled(value: Any) -> Any:
    """Return a value whose text is the same in every process: a set has no order."""
    return sorted(map(canonical, value)) if isinstance(value, set | frozenset) else value


def install(run: AgentRun, keys: Keys, singleton: str | None) -> None:
    """Write the routes of an agent, in the caller's transaction.

    Raises ``SingletonTakenError`` where another one lives for the same match; then the caller rolls back.
    """
    AgentRoute.objects.bulk_create([AgentRoute(run_id=run.pk, key=key) for key in sorted(keys)])
    if singleton is not None:
        # Last: on MariaDB whoever waits for this key locks the gap beside it, too, where the others would be inserted.
        only = AgentRoute(run_id=run.pk, key=singleton, unique_key=singleton)
        if not insert_ignoring(AgentRoute, [only], key="unique_key"):
            raise SingletonTakenError(f"Another {run.name!r} lives for the match of {run}, and it is a singleton.")


def reroute(run: AgentRun, keys: Keys, before: str | None, singleton: str | None) -> None:
    """Give the agent the routes ``keys`` and no others, in the caller's transaction. ``before``: what its
    singleton's key was.

    What other code has written is replaced, too: it was made of a Context that is gone. Raises ``SingletonTakenError``.
    """
    routes = AgentRoute.objects.filter(run=run)
    known = set(routes.filter(unique_key=None).values_list("key", flat=True))
    routes.filter(unique_key=None, key__in=known - keys).delete()
    if before != singleton:
        routes.filter(unique_key__isnull=False).delete()
    install(run, keys - known, singleton if before != singleton else None)


def taken_by(singleton: str) -> int | None:
    """Return the primary key of the agent that lives for a singleton's match."""
    found = AgentRoute.objects.filter(unique_key=singleton).values_list("run_id", flat=True).first()
    return None if found is None else int(found)


def fingerprint(definition: AgentDefinition) -> str:
    """Return what tells whether living agents have the routes that today's code asks for."""
    parts = ["singleton"] if definition.singleton else []
    for handler in definition.handlers:
        match = definition.match_of(handler)
        parts.append(f"{handler.event_name}:{'own' if match is None else match.text}")
    return digest("routing", *sorted(parts))


# -- the event's side --------------------------------------------------------------------------------------------------


def keys_for(definition: AgentDefinition, handler: HandlerDefinition, event: Event) -> list[str]:
    """Return the keys of the agents that ``handler`` of ``definition`` hears ``event`` for."""
    match = definition.match_of(handler)
    if match is None:
        return [_own(definition.name, event.entity_type, event.entity_id), _any(definition.name, handler.event_name)]
    sources = sources_of(handler.event_name)
    return entity_keys(scope_of(definition, match), event.entity, match.shapes(sources))
