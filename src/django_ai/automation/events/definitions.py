"""``EventDefinition``: what a model declares in its ``events`` list, and the register of all that is declared.

This module imports no models, because models modules import it. Definitions are immutable and refuse early. Each
belongs to an *owner*: the furthest concrete ancestor that lists it. So a row that is saved now through a child class
and then through its parent has one event, not two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import models

from ..conf import conf
from ..exceptions import DefinitionError

Condition = Callable[[Any], bool]
Payload = Callable[[Any], dict[str, Any]]


class EventDefinition:
    """Declare an event of a model.

    ``name``: what subscribers call it. ``condition``: a function of the entity; the event occurs only while it is true
    (default: always). ``date_field``: the name of a date field; the event is then *scheduled* and occurs at that date;
    without it the event is *immediate* and occurs after the commit of the save that makes the condition true.
    ``payload``: a function of the entity (or of the event, if its parameter is called ``event``) that returns a dict
    for those who wait for the event. ``grace``: how long after its date a scheduled event may still occur when its
    condition turns true (default ``AUTOMATION["GRACE"]``, 24 h).

    Raises ``DefinitionError`` for arguments that make no sense.
    """

    def __init__(
        self,
        name: str,
        condition: Condition | None = None,
        *,
        date_field: str | None = None,
        payload: Payload | None = None,
        grace: timedelta | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip() or len(name) > 200:
            raise DefinitionError(f"EventDefinition({name!r}): the name must be a text of 1 to 200 characters.")
        what = f"EventDefinition({name!r})"
        for title, function in (("condition", condition), ("payload", payload)):
            if function is not None and not callable(function):
                raise DefinitionError(f"{what}: {title}={function!r} must be a function of the entity.")
        if date_field is not None and (not isinstance(date_field, str) or not date_field):
            raise DefinitionError(f"{what}: date_field={date_field!r} must be the name of a date field, as a text.")
        if grace is not None and (not isinstance(grace, timedelta) or grace < timedelta(0)):
            raise DefinitionError(f"{what}: grace={grace!r} must be a timedelta of zero or more.")
        if grace is not None and date_field is None:
            raise DefinitionError(f"{what}: grace= is for scheduled events; give date_field= too, or leave it out.")
        self.name = name
        self.condition = condition
        self.date_field = date_field
        self.payload = payload
        self._grace = grace

    @property
    def is_scheduled(self) -> bool:
        return self.date_field is not None

    @property
    def grace(self) -> timedelta:
        return conf().GRACE if self._grace is None else self._grace

    def holds_for(self, entity: models.Model) -> bool:
        """Say whether the condition is true for ``entity``. Raises whatever the condition raises."""
        return self.condition is None or bool(self.condition(entity))

    def __repr__(self) -> str:
        kind = f"date_field={self.date_field!r}" if self.is_scheduled else "immediate"
        return f"<EventDefinition {self.name!r} {kind}>"


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


def listed(model: type[models.Model]) -> list[EventDefinition]:
    """Return what ``model.events`` lists. A relation or manager of that name is not meant, and gives nothing."""
    events = getattr(model, "events", None)
    if not isinstance(events, list | tuple):
        return []
    return [each for each in events if isinstance(each, EventDefinition)]


_declarations: dict[type[models.Model], tuple[Declared, ...]] = {}


def declared_on(model: type[models.Model]) -> tuple[Declared, ...]:
    """Return the events that saving an instance of ``model`` may concern, in the order of their definition."""
    found = _declarations.get(model)
    if found is None:
        found = _declarations[model] = tuple(_declared(model))
    return found


def forget_declarations() -> None:
    """Read ``events`` lists again: a model was added."""
    _declarations.clear()


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
    found: dict[str, list[Declared]] = {}
    for model in declaring_models():
        for declared in declared_on(model):
            if declared.owner is model:
                found.setdefault(declared.definition.name, []).append(declared)
    return found


def concrete_ancestors(model: type[models.Model]) -> Iterator[type[models.Model]]:
    """Yield ``model`` and the models above it that have or share a table, nearest first."""
    for ancestor in model.__mro__:
        if issubclass(ancestor, models.Model) and hasattr(ancestor, "_meta") and not ancestor._meta.abstract:
            yield ancestor


def find_declared(label: str, name: str) -> Declared | None:
    """Return the declaration of the event ``name`` that the model ``label`` owns, or None if it is gone."""
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        return None
    return next((each for each in declared_on(model) if each.definition.name == name and each.owner is model), None)
