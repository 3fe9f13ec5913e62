"""Routing: how an event finds its agents, for any number of agents.

Each distinct match of an agent's handlers gives keys, made of the values in its Context. Each key is an indexed row. An
event's entity gives the same keys, one for each shape that the code declares, and one query finds the agents. A handler
without a match receives the events of the entity that spawned its agent; if that entity does not declare the event, it
receives the events of every entity. A singleton has one more row, whose key is unique: two agents with one match cannot
both be inserted.
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
from ..events.declarations import is_family, sources_of
from ..events.matching.match import Address, Match, address, event_keys
from ..events.matching.typed_values import canonical
from ..events.models import Event
from ..events.sources import event_sources
from ..exceptions import AutomationError, ContextError, SingletonTakenError
from ..values.digests import digest
from ..values.text import trace_of
from .definitions import AgentDefinition, HandlerDefinition
from .models import AgentRoute, AgentRun

Keys = frozenset[str]


def scope_of(definition: AgentDefinition, match: Match) -> str:
    """Return the prefix that separates the keys of one match of one agent from all other keys."""
    return _scope(definition.name, match.identity)


@lru_cache(maxsize=4096)
def _scope(name: str, match: str) -> str:
    return digest("agent", name, match)


def own_labels(entity_type: str, pattern: str) -> list[str]:
    """Return the labels under which the entity's family (its model, proxies, parents, children) declares events of
    ``pattern``."""
    try:
        model = apps.get_model(entity_type) if entity_type else None
    except (LookupError, ValueError):
        return []
    if model is None:
        return []
    owners = {each.label: each.owner for each in sources_of(pattern)}
    return sorted(label for label, owner in owners.items() if is_family(owner, model))


def _own_key(name: str, label: str, entity_id: str) -> str:
    return digest("agent's own", name, label, entity_id)


def any_key(name: str, pattern: str) -> str:
    """Return the key of agents that receive the events of ``pattern`` of every entity."""
    return digest("agent's any", name, pattern)


# -- the agent's side --------------------------------------------------------------------------------------------------


def keys_of(definition: AgentDefinition, run: AgentRun, context: BaseModel) -> Keys:
    """Return the keys under which events find the agent with this Context."""
    found: set[str] = set()
    for handler in definition.handlers:
        match = definition.match_of(handler)
        if match is None:
            labels = own_labels(run.entity_type, handler.event_name)
            found |= {_own_key(definition.name, label, run.entity_id) for label in labels} or {
                any_key(definition.name, handler.event_name)
            }
        else:
            found |= set(address_for(definition, handler, match, context).keys)
    return frozenset(found)


def address_for(definition: AgentDefinition, handler: HandlerDefinition, match: Match, context: BaseModel) -> Address:
    """Return the address of the events that ``handler`` receives for an agent with this Context.

    Raises ``ContextError`` for any exception of the Context's code.
    """
    sources = event_sources(handler.event_name)
    with _context_errors(definition):
        return address(scope_of(definition, match), match.values_from(context), sources, spread=True)


@contextmanager
def _context_errors(definition: AgentDefinition) -> Iterator[None]:
    """Turn an exception of project code that reads a Context into a ``ContextError``."""
    try:
        yield
    except AutomationError:
        raise
    except Exception as error:
        if is_database_failure(error, connections[alias_of(AgentRun)]):
            raise
        raise ContextError(
            f"The match of the agent {definition.name!r} cannot be evaluated.\n{trace_of(error)}"
        ) from error


def singleton_key(definition: AgentDefinition, run: AgentRun, context: BaseModel) -> str | None:
    """Return the key that only one unfinished agent may have, or None for an agent that is no singleton."""
    if not definition.singleton:
        return None
    if definition.match is None:
        return digest("singleton", definition.name, run.entity_type, run.entity_id)
    with _context_errors(definition):
        values = definition.match.values_from(context)
        parts = [part for name, value in sorted(values.items()) for part in (name, canonical(_in_fixed_order(value)))]
    return digest("singleton", definition.name, *parts)


def _in_fixed_order(value: Any) -> Any:
    """Return a value whose string is the same in every process: a set has no order."""
    return sorted(map(canonical, value)) if isinstance(value, set | frozenset) else value


def install_routes(run: AgentRun, keys: Keys, singleton: str | None) -> None:
    """Write the routes of an agent, in the caller's transaction.

    Raises ``SingletonTakenError`` if another agent holds the singleton key; the caller then rolls back.
    """
    AgentRoute.objects.bulk_create([AgentRoute(run_id=run.pk, key=key) for key in sorted(keys)])
    if singleton is not None:
        # Last: on MariaDB a transaction that waits for this key also locks the gap into which others insert routes.
        only = AgentRoute(run_id=run.pk, key=singleton, unique_key=singleton)
        if not insert_ignoring(AgentRoute, [only], key="unique_key"):
            raise SingletonTakenError(f"{run.name!r} is a singleton, and another one is active for the match of {run}.")


def replace_routes(run: AgentRun, keys: Keys, before: str | None, singleton: str | None) -> None:
    """Give the agent the routes ``keys`` and no others, in the caller's transaction.

    ``before`` is its previous singleton key. Routes that another release has written are replaced, too: they come from
    a Context that has changed since. Raises ``SingletonTakenError``.
    """
    routes = AgentRoute.objects.filter(run=run)
    known = set(routes.filter(unique_key=None).values_list("key", flat=True))
    routes.filter(unique_key=None, key__in=known - keys).delete()
    if before != singleton:
        routes.filter(unique_key__isnull=False).delete()
    install_routes(run, keys - known, singleton if before != singleton else None)


def singleton_holder(singleton: str) -> int | None:
    """Return the primary key of the agent that holds a singleton key."""
    found = AgentRoute.objects.filter(unique_key=singleton).values_list("run_id", flat=True).first()
    return None if found is None else int(found)


def fingerprint(definition: AgentDefinition) -> str:
    """Return a digest of all matches: an agent with another one lacks routes that the current code needs."""
    parts = ["singleton"] if definition.singleton else []
    for handler in definition.handlers:
        match = definition.match_of(handler)
        parts.append(f"{handler.event_name}:{'own' if match is None else match.identity}")
    return digest("routing", *sorted(parts))


# -- the event's side --------------------------------------------------------------------------------------------------


def keys_for(definition: AgentDefinition, handler: HandlerDefinition, event: Event) -> list[str]:
    """Return the keys of the agents whose ``handler`` receives ``event``."""
    match = definition.match_of(handler)
    if match is None:
        own = _own_key(definition.name, event.entity_type, event.entity_id)
        return [own, any_key(definition.name, handler.event_name)]
    sources = event_sources(handler.event_name)
    return event_keys(scope_of(definition, match), event, match.shapes(sources))
