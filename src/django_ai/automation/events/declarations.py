"""The register of declared events: which models list which definitions, in their ``events`` or by ``register_events``.

Each definition belongs to an *owner*: the furthest concrete ancestor that lists it. So a row that is saved through a
child class and later through its parent has one event, not two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.db import models

from .definitions import EventDefinition
from .entity_ids import entity_id_of
from .free_events import FreeEvent
from .names import may_match


@dataclass(frozen=True, slots=True)
class Declared:
    """A definition, the model that owns it, and that model's label as it is stored."""

    definition: EventDefinition
    owner: type[models.Model]
    label: str

    def pk_of(self, entity: models.Model) -> Any:
        """Return the owner's primary key of ``entity``, which may be of a child class with a table of its own."""
        link = entity._meta.get_ancestor_link(self.owner)
        return entity.pk if link is None else getattr(entity, link.attname)

    def entity_id_of(self, entity: models.Model) -> str:
        """Return the owner's primary key of ``entity`` as the string that is stored."""
        return entity_id_of(self.owner, self.pk_of(entity))


def listed(model: type[models.Model]) -> list[EventDefinition]:
    """Return the definitions in ``model.events`` (none where that is a relation or a manager), and those that were
    registered for the model or a base of it."""
    events = getattr(model, "events", None)
    found = [each for each in events if _is_of_model(each)] if isinstance(events, list | tuple) else []
    if registered:
        more = dict.fromkeys(each for base in reversed(model.__mro__) for each in registered.get(base, ()))
        found += [each for each in more if each not in found]
    return found


def _is_of_model(definition: Any) -> bool:
    return isinstance(definition, EventDefinition) and not isinstance(definition, FreeEvent)


registered: dict[type, tuple[EventDefinition, ...]] = {}
"""What ``register_events`` has added, by model."""

_on_registered: list[Callable[[type[models.Model]], object]] = []


def add_registered(model: type[models.Model], definitions: Sequence[EventDefinition]) -> None:
    """Add ``definitions`` to what ``model`` lists."""
    registered[model] = (*registered.get(model, ()), *definitions)
    forget_declarations()
    for listener in _on_registered:
        listener(model)


def when_registered(listener: Callable[[type[models.Model]], object]) -> None:
    """Call ``listener`` with each model for which events are registered from now on. Idempotent."""
    if listener not in _on_registered:
        _on_registered.append(listener)


_declarations: dict[type[models.Model], tuple[Declared, ...]] = {}


def declared_on(model: type[models.Model]) -> tuple[Declared, ...]:
    """Return the events that a save of a ``model`` instance may affect, in the order of their definition."""
    found = _declarations.get(model)
    if found is None:
        found = _declarations[model] = tuple(_declared(model))
    return found


def kept_fields(model: type[models.Model]) -> set[str] | None:
    """Return the names of the fields that a snapshot of a deleted ``model`` holds; None: all of them."""
    kept: set[str] = set()
    for declared in declared_on(model):
        definition = declared.definition
        if definition.keeps_all:
            return None
        kept |= {model._meta.get_field(name).name for name in definition.snapshot_fields if name != "pk"}
    return kept


@dataclass(frozen=True, slots=True)
class ComparedColumns:
    """The columns of one table that events compare before and after a write, and one of these events.

    ``names``: every name by which ``update_fields`` may mean one of the columns.
    """

    declared: Declared
    columns: frozenset[str]
    names: frozenset[str]


_compared: dict[type[models.Model], dict[type[models.Model], ComparedColumns]] = {}


def compared_columns(model: type[models.Model]) -> dict[type[models.Model], ComparedColumns]:
    """Return the columns that must be read before a save of ``model``, by the concrete model that owns the events.

    The columns that any proxy or child compares are among them: one transaction may save a row as several classes.
    """
    found = _compared.get(model)
    if found is None:
        found = _compared[model] = dict(_compared_columns(model))
    return found


def _compared_columns(model: type[models.Model]) -> Iterator[tuple[type[models.Model], ComparedColumns]]:
    comparing = {_concrete(each): each for each in declared_on(model) if each.definition.compared_fields}
    everywhere = [each for every in {model, *declaring_models()} for each in declared_on(every)] if comparing else []
    for owner, declared in comparing.items():
        definitions = [each.definition for each in everywhere if _concrete(each) is owner]
        fields: list[Any] = [owner._meta.get_field(name) for each in definitions for name in each.compared_fields]
        columns = frozenset(field.attname for field in fields)
        yield owner, ComparedColumns(declared, columns, columns | {field.name for field in fields})


def _concrete(declared: Declared) -> type[models.Model]:
    concrete = declared.owner._meta.concrete_model
    assert concrete is not None
    return concrete


_by_name: dict[str, list[Declared]] = {}
_sources: dict[str, list[Declared]] = {}
_derived: list[Callable[[], object]] = []


def forget_declarations() -> None:
    """Forget what was read from the ``events`` lists, because a model or a definition was added."""
    _declarations.clear()
    _compared.clear()
    _by_name.clear()
    _sources.clear()
    for forget in _derived:
        forget()


def forget_with(forget: Callable[[], object]) -> None:
    """Call ``forget`` whenever the declarations are forgotten: it has derived something from them."""
    _derived.append(forget)


def _declared(model: type[models.Model]) -> Iterator[Declared]:
    for definition in listed(model):
        owner = model
        for ancestor in concrete_ancestors(model):
            if any(each is definition for each in listed(ancestor)):
                owner = ancestor
        yield Declared(definition, owner, owner._meta.label_lower)


def declaring_models() -> list[type[models.Model]]:
    """Return all installed models that declare events, proxies and children too."""
    return [model for model in apps.get_models() if listed(model)]


def declared_events() -> dict[str, list[Declared]]:
    """Return every declared event name with its owners."""
    if _by_name:
        return _by_name
    found: dict[str, list[Declared]] = {}
    for model in declaring_models():
        for declared in declared_on(model):
            if declared.owner is model:
                found.setdefault(declared.definition.name, []).append(declared)
    _by_name.update(found)
    return found


def sources_of(pattern: str) -> list[Declared]:
    """Return the declarations whose events a subscriber to ``pattern`` may get."""
    found = _sources.get(pattern)
    if found is None:
        known = declared_events().items()
        found = [each for name, declared in known if may_match(pattern, name) for each in declared]
        if len(_sources) < 10_000:  # each wait on a templated name has another name
            _sources[pattern] = found
    return found


def concrete_ancestors(model: type[models.Model]) -> Iterator[type[models.Model]]:
    """Yield ``model`` and the models above it that have or share a table, nearest first."""
    for ancestor in model.__mro__:
        if issubclass(ancestor, models.Model) and hasattr(ancestor, "_meta") and not ancestor._meta.abstract:
            yield ancestor


def is_family(one: type[models.Model], other: type[models.Model]) -> bool:
    """Return whether one of two models inherits from the other, or is it: their instances may be one entity."""
    return issubclass(one, other) or issubclass(other, one)


def find_declared(label: str, name: str) -> Declared | None:
    """Return the declaration of the event ``name`` that the model ``label`` owns, or None if it is gone."""
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        return None
    return next((each for each in declared_on(model) if each.definition.name == name and each.owner is model), None)
