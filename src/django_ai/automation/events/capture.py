"""Which events are captured, and whose writes concern them.

A definition with ``capture=True`` also hears writes that send no signals. Database triggers on the tables of its model
write the primary keys to the outbox (``CapturedWrite``). A model with multi-table inheritance has several tables; all
writes to the tables of one entity are found under the *root*: its furthest ancestor with a table. Pure: no query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.signals import setting_changed
from django.db import models

from .declarations import Declared, concrete_ancestors, declared_on, declaring_models, forget_with
from .entity_ids import entity_id_of

Model = type[models.Model]


@dataclass(frozen=True, slots=True)
class Reader:
    """A class whose instances show captured events their entity, and these events."""

    model: Model
    declared: tuple[Declared, ...]

    @property
    def tables(self) -> tuple[Model, ...]:
        """The models whose tables hold a row of this class, nearest first."""
        return tuple(tables_of(self.model))


def tables_of(model: Model) -> Iterator[Model]:
    """Yield the models that have the tables of ``model``: its own, and those of its ancestors."""
    for ancestor in concrete_ancestors(model):
        if not ancestor._meta.proxy:
            yield ancestor


def root_of(model: Model) -> Model:
    """Return the furthest ancestor of ``model`` that has a table."""
    return list(tables_of(model))[-1]


def concrete(model: Model) -> Model:
    """Return the model that has the table of ``model``, which may be a proxy."""
    found = model._meta.concrete_model
    assert found is not None
    return found


def captured_on(model: Model) -> tuple[Declared, ...]:
    """Return the captured events that ``model`` declares or inherits."""
    found = _captured.get(model)
    if found is None:
        found = _captured[model] = tuple(each for each in declared_on(model) if each.definition.is_captured)
    return found


def root_id_of(entity: models.Model) -> str:
    """Return the primary key of ``entity`` in its root table, as the triggers write it."""
    root = root_of(type(entity))
    link = entity._meta.get_ancestor_link(root)
    return entity_id_of(root, entity.pk if link is None else getattr(entity, link.attname))


def captured_models() -> list[Model]:
    """Return the installed models that have captured events."""
    return [model for model in declaring_models() if captured_on(model)]


def captured_tables() -> dict[Model, Model]:
    """Return the models whose tables need triggers, each with its root."""
    if "tables" not in _derived:
        found = {}
        for model in captured_models():
            tables = list(tables_of(model))
            found.update(dict.fromkeys(tables, tables[-1]))
        _derived["tables"] = found
    tables_: dict[Model, Model] = _derived["tables"]
    return tables_


def roots() -> dict[str, Model]:
    """Return the roots of the captured tables, by label."""
    if "roots" not in _derived:
        _derived["roots"] = {root._meta.label_lower: root for root in captured_tables().values()}
    roots_: dict[str, Model] = _derived["roots"]
    return roots_


def readers_of(root: Model) -> tuple[Reader, ...]:
    """Return who reads the captured events of the entities below ``root``, classes with more tables first.

    An event is read from the class with most tables that has a row of the entity and lists it: a condition that a child
    overrides is the child's. A proxy, which shares the table of its base, reads only what it alone lists.
    """
    found = _readers.get(root)
    if found is None:
        found = _readers[root] = tuple(_readers_of(root))
    return found


def tables_by_label(root: Model) -> dict[str, Model]:
    """Return the models of the tables that hold entities below ``root``, by label."""
    return {table._meta.label_lower: table for reader in readers_of(root) for table in reader.tables}


def _readers_of(root: Model) -> Iterator[Reader]:
    below = [model for model in captured_models() if root_of(model) is root]
    below.sort(key=lambda model: (-len(list(tables_of(model))), model._meta.proxy))
    seen: set[tuple[Model, str, str]] = set()
    for model in below:
        mine = []
        for declared in captured_on(model):
            key = (concrete(model), declared.label, declared.definition.name)
            if key not in seen:
                seen.add(key)
                mine.append(declared)
        if mine:
            yield Reader(model, tuple(mine))


def not_recorded_by(model: Model) -> bool:
    """Return whether a save of a ``model`` instance leaves captured events of its entity to others: those that only
    another class lists."""
    found = _incomplete.get(model)
    if found is None:
        covered = {(each.label, each.definition.name) for each in declared_on(model)}
        found = _incomplete[model] = any(
            (each.label, each.definition.name) not in covered
            for reader in readers_of(root_of(model))
            if set(reader.tables) & set(tables_of(model))
            for each in reader.declared
        )
    return found


_captured: dict[Model, tuple[Declared, ...]] = {}
_readers: dict[Model, tuple[Reader, ...]] = {}
_incomplete: dict[Model, bool] = {}
_derived: dict[str, Any] = {}
_listeners: list[Callable[[], object]] = []


def when_forgotten(listener: Callable[[], object]) -> None:
    """Call ``listener`` when what is captured may have changed. Idempotent."""
    if listener not in _listeners:
        _listeners.append(listener)


def forget() -> None:
    """Forget what was derived from the declarations."""
    caches: Sequence[dict[Any, Any]] = (_captured, _readers, _incomplete, _derived)
    for cache in caches:
        cache.clear()
    for listener in _listeners:
        listener()


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "AUTOMATION":
        forget()


forget_with(forget)
setting_changed.connect(_forget, dispatch_uid="django_ai.automation.capture")
