"""What an entity was before the save that first shows it to a definition.

An event that is declared on a table with existing rows must not occur for rows whose condition already held. So the
values that an instance was loaded with are kept with it (no copies, no statement); if a save finds no event row, the
condition is evaluated with these values, too. Where they are unknown (an instance that was constructed over an existing
row) the row is read before it is overwritten.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import models

from ..declarations import Declared
from ..models import Event

LOADED_VALUES = "automation_loaded"
"""The attribute of ``instance._state`` that has the loaded values; None: the row did not exist."""


def remember_loaded_values(model: type[models.Model]) -> None:
    """Let instances of ``model`` remember the values that they were loaded with. Idempotent."""
    if not getattr(model.from_db, "remembers_loaded_values", False):
        model.from_db = classmethod(_from_db(model.from_db.__func__))  # type: ignore[attr-defined,assignment]
    if not getattr(model.refresh_from_db, "updates_loaded_values", False):
        model.refresh_from_db = _refresh_from_db(model.refresh_from_db)  # type: ignore[method-assign]


def _from_db(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(cls: type[models.Model], db: str | None, field_names: Any, values: Any, **kwargs: Any) -> Any:
        instance = original(cls, db, field_names, values, **kwargs)
        setattr(instance._state, LOADED_VALUES, (tuple(field_names), tuple(values)))
        return instance

    wrapper.remembers_loaded_values = True  # type: ignore[attr-defined]
    return wrapper


def _refresh_from_db(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(self: models.Model, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        fields = kwargs.get("fields", args[1] if len(args) > 1 else None)
        known = {} if fields is None else _loaded(self)
        if known is not None:
            named = None if fields is None else set(fields)
            for field in self._meta.concrete_fields:
                if field.attname in self.__dict__ and (named is None or named & {field.name, field.attname}):
                    known[field.attname] = self.__dict__[field.attname]
            setattr(self._state, LOADED_VALUES, known)

    wrapper.updates_loaded_values = True  # type: ignore[attr-defined]
    return wrapper


def _loaded(instance: models.Model) -> dict[str, Any] | None:
    """Return the values of the row when ``instance`` was read. None: it was not read."""
    found = getattr(instance._state, LOADED_VALUES, None)
    return found if found is None or isinstance(found, dict) else dict(zip(*found, strict=True))


def read_row_before_save(instance: models.Model, using: str, is_inserted: bool) -> None:
    """Read the row that the save may overwrite, if its values are unknown. An ordinary save needs no query."""
    meta, loaded = instance._meta, _loaded(instance)
    is_new = is_inserted_by_save(instance, is_inserted)
    if is_new or (loaded is None and not instance._state.adding and hasattr(instance._state, LOADED_VALUES)):
        return
    fields = [field.attname for field in meta.concrete_fields if field.attname in instance.__dict__]
    if loaded is not None and loaded.get(meta.pk.attname) == instance.pk and set(fields) <= set(loaded):
        return
    row = type(instance)._base_manager.using(using).filter(pk=instance.pk).first()
    setattr(instance._state, LOADED_VALUES, None if row is None else _loaded(row))


def is_inserted_by_save(instance: models.Model, force_insert: bool) -> bool:
    """Return whether it is certain that a save inserts the row of ``instance``."""
    return force_insert or instance.pk is None or (instance._state.adding and _has_default(instance))


def _has_default(instance: models.Model) -> bool:
    pk: Any = instance._meta.pk
    return bool(pk.has_default() or pk.has_db_default())


def mark_as_inserted(instance: models.Model) -> None:
    """Remember that the row of ``instance`` is new."""
    setattr(instance._state, LOADED_VALUES, None)


def as_before_save(instance: models.Model) -> models.Model | None:
    """Return a copy of ``instance`` as stored before this save. None: there was no row, or it is unknown."""
    loaded = _loaded(instance)
    if loaded is None:
        return None
    before = copy.copy(instance)
    fields: tuple[Any, ...] = before._meta.concrete_fields
    for field in fields:
        name = field.attname
        if name in loaded and before.__dict__.get(name) != loaded[name]:
            before.__dict__[name] = loaded[name]
            if field.is_relation and field.is_cached(before):
                field.delete_cached_value(before)
    return before


def first_recorded_at(declared: Declared) -> datetime | None:
    """Return when the first event of a definition was recorded, or None."""
    rows = Event.objects.filter(entity_type=declared.label, declared_as=declared.definition.name)
    return rows.order_by("pk").values_list("event_created_at", flat=True).first()


HELD_BEFORE_NOTE = (
    "Its condition already held before the event was declared here (or before its first save since), so it does not "
    'occur. Set existing="fire" on the EventDefinition to make it occur.'
)
