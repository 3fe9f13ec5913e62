"""System checks of agents: undeclared events, matches that no entity has, matches that route nothing."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import FieldDoesNotExist
from django.db import models

from ..events.checks import (
    check_context,
    check_match,
    check_offset_makes_sense,
    did_you_mean,
    is_declared,
    shares_entity,
)
from ..events.declarations import is_family, sources_of
from ..events.free_events import FreeEvent
from ..events.matching.context_expressions import field_named
from ..events.matching.match import Match
from ..events.matching.payload_fields import annotation_of
from ..events.matching.typed_values import is_exact, resolve_field
from ..events.sources import Owner, declared_names, event_sources, labels_of, owners_of
from .definitions import AgentDefinition, HandlerDefinition, all_agents


def check_agents(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [problem for definition in all_agents() for problem in _check(definition)]


def _check(definition: AgentDefinition) -> Iterator[CheckMessage]:
    yield from _check_singleton(definition)
    for name in definition.spawn_on:
        if not is_declared(name):
            yield Error(
                f"The agent {definition.name} is spawned by the event {name!r}, which no code declares.",
                hint=did_you_mean(name, declared_names()),
                obj=definition.cls,
                id="automation.E301",
            )
        elif getattr(definition.cls, "create_context", None) is None:
            what = f"The agent {definition.name}"
            yield from check_context(what, name, definition.context, definition.cls, "automation.E308")
    for handler in definition.handlers:
        what = f"The agent {definition.name}: the handler {handler.method}"
        if not is_declared(handler.event_name):
            yield Error(
                f"{what} subscribes to the event {handler.event_name!r}, which no code declares.",
                hint=did_you_mean(handler.event_name, declared_names()),
                obj=definition.cls,
                id="automation.E302",
            )
            continue
        if handler.offset is not None:
            yield from check_offset_makes_sense(what, handler.event_name, handler.offset)
        yield from _check_match(definition, handler, what)


def _check_singleton(definition: AgentDefinition) -> Iterator[CheckMessage]:
    """Report an agent of which several may handle one event, unless its ``singleton=`` says so."""
    match = definition.match
    if definition.names_singleton or not definition.spawn_on or match is None or not match.lookups:
        return
    starters = [source.owner for name in definition.spawn_on for source in sources_of(name)]
    if not starters or any(_distinguishes(definition, name, starters) for name in match.names()):
        return
    yield Warning(
        f"The agent {definition.name}: each {' and '.join(map(repr, definition.spawn_on))} spawns one, and all with "
        f"the same {', '.join(match.names())} handle each event that matches.",
        hint="Write singleton=True for one agent for each match, which then receives the events that would spawn "
        "another one; or singleton=False if each agent is to handle them.",
        obj=definition.cls,
        id="automation.W307",
    )


def _distinguishes(definition: AgentDefinition, name: str, starters: list[type[models.Model]]) -> bool:
    """Return whether two entities that spawn agents always differ in the field ``name``: it is unique to them, or
    points to one of them."""

    def is_starter(model: Any) -> bool:
        return any(is_family(model, each) for each in starters)

    unmatched = [each for each in definition.handlers if each.match is None]
    owners = {*starters, *(source.owner for each in unmatched for source in sources_of(each.event_name))}
    for owner in owners:
        try:
            field = resolve_field(owner, name)
        except FieldDoesNotExist:
            continue
        path = name.split("__")
        if is_starter(owner) and len(path) == 1 and field.unique:
            return True
        above = resolve_field(owner, "__".join(path[:-1])) if len(path) > 1 else None
        points_to = [each.related_model for each in (field, above) if each is not None and each.is_relation]
        if any(is_starter(model) for model in points_to) and (field.is_relation or field.unique):
            return True
    return False


def _check_match(definition: AgentDefinition, handler: HandlerDefinition, what: str) -> Iterator[CheckMessage]:
    match = definition.match_of(handler)
    sources = event_sources(handler.event_name)
    if match is None:
        if definition.spawn_on and not shares_entity(definition.spawn_on, handler.event_name):
            if any(isinstance(each, FreeEvent) for each in sources):
                which = "whatever its payload: it belongs to no entity"
            else:
                which = f"of any {labels_of(sources)}: the entity that spawns the agent does not declare it"
            yield Warning(
                f"{what} receives the event {handler.event_name!r} {which}.",
                hint='Select them with match={"field": "{{ ctx.field }}"}, or write match={} for all of them.',
                obj=definition.cls,
                id="automation.W304",
            )
        return
    problems = list(check_match(what, handler.event_name, match.names(), definition.cls, "automation.E303"))
    yield from problems
    if problems or not match.lookups:
        return
    owners = owners_of(sources)
    keyed = [name for name in match.names() if is_exact(owners, name) or is_exact(owners, name.removesuffix("__in"))]
    if not keyed:
        yield Warning(
            f"{what}: its match compares no field for equality ({', '.join(match.names())}), so each event is compared "
            "with every active agent.",
            hint="Add a field that distinguishes agents, as in {'guest_id': '{{ ctx.guest_id }}'}.",
            obj=definition.cls,
            id="automation.W305",
        )
    yield from _check_lists(definition, match, owners, what)


def _check_lists(
    definition: AgentDefinition, match: Match, owners: Sequence[Owner], what: str
) -> Iterator[CheckMessage]:
    """Report a list in the Context that is compared with a single value: it can never match."""
    for name, value in match.lookups:
        field = field_named(value, definition.context)
        if field is None or not is_exact(owners, name):
            continue
        origin = _list_type(field.annotation)
        if origin is not None and not any(_holds_lists(owner, name) for owner in owners):
            yield Error(
                f"{what}: match compares the single value {name!r} with a {origin.__name__} of the Context.",
                hint=f"Write {name + '__in'!r} to match any element.",
                obj=definition.cls,
                id="automation.E306",
            )


def _list_type(annotation: Any) -> type | None:
    """Return the type of list in ``annotation``, also in an optional one (``list[str] | None``)."""
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return next((found for each in typing.get_args(annotation) if (found := _list_type(each))), None)
    return origin if origin in (list, tuple, set, frozenset) else None


def _holds_lists(owner: Owner, name: str) -> bool:
    if isinstance(owner, FreeEvent):
        annotation = annotation_of(owner.schema, name)
        return annotation in (None, Any) or _list_type(annotation) is not None
    try:
        field = owner._meta.get_field(name.split("__")[0])
    except Exception:
        return False
    return isinstance(field, models.JSONField) or field.__class__.__name__ == "ArrayField"
