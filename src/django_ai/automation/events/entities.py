"""Entities: read the model instances that events are about, many with one query."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import apps
from django.db.models import Model, Q

from ..db.selects import read_of_project
from ..db.writer import alias_of
from ..exceptions import DefinitionError
from ..queues.async_code import awaited
from ..values.callables import is_async
from .declarations import declared_on
from .definitions import EventDefinition
from .models import Event, Snapshot, rows_of_entity
from .models.event import inherit_snapshots
from .zone_queries import with_zones


def rows_about(entity: object, path: str = "") -> Q:
    """Return the condition for rows that belong to ``entity``, whichever class of its inheritance chain it was loaded
    as. ``path``: the lookup of the row with the entity's columns, such as ``"event__"``.

    Raises ``DefinitionError`` unless ``entity`` is a saved model instance.
    """
    if not isinstance(entity, Model):
        raise DefinitionError(f"entity={entity!r} must be a model instance.")
    if entity.pk is None:
        raise DefinitionError(
            f"entity={entity!r} has no primary key: it was not saved, or it was deleted. Save it, or make a "
            "copy.copy(...) before the deletion."
        )
    return rows_of_entity(entity, path)


def is_installed(label: str) -> bool:
    """Return whether this code has the model ``label`` that rows refer to."""
    try:
        apps.get_model(label)
    except (LookupError, ValueError):
        return False
    return True


def _definitions_of(model: type[Model], events: Iterable[Event]) -> list[EventDefinition]:
    names = {event.declared_as for event in events}
    return [each.definition for each in declared_on(model) if each.definition.name in names]


def read_for_async(events: Sequence[Event], *functions: Any) -> None:
    """Read the entities of ``events`` if one of ``functions`` is async: a coroutine cannot read them on first access.

    For callers whose attempt may let go of the connection while the coroutine waits (``atomic=False``)."""
    if any(map(is_async, functions)):
        load_entities(events)
        for event in events:
            if event.entity is None:
                event.entity = event.load_entity()  # it may have been deleted just now


def awaited_about(event: Event, result: Any) -> Any:
    """Return what a condition has returned about ``event``; if it is a coroutine, run it. The entity is read before,
    because the coroutine cannot read it on first access."""
    if inspect.iscoroutine(result):
        try:
            event.entity  # noqa: B018
        except BaseException:
            result.close()
            raise
    return awaited(result)


def load_entities(events: Iterable[Event]) -> None:
    """Read the entities of ``events`` with one query for each model. Deleted entities are restored from snapshots."""
    by_model: dict[str, list[Event]] = {}
    events = list(events)
    for event in events:
        if event.snapshot_id is None and not event.is_free:
            by_model.setdefault(event.entity_type, []).append(event)
    for label, group in by_model.items():
        try:
            model = apps.get_model(label)
        except (LookupError, ValueError):
            continue
        inherit_snapshots(label, [event for event in group if event.active_key is None])
        group = [event for event in group if event.snapshot_id is None]
        pks = {event.pk: model._meta.pk.to_python(event.entity_id) for event in group}
        rows = with_zones(model._base_manager.using(alias_of(model)), _definitions_of(model, group))
        entities = read_of_project(rows, list(set(pks.values())))
        for event in group:
            event.entity = entities.get(pks[event.pk])
    deleted = [event for event in events if event.snapshot_id is not None and "_entity" not in event.__dict__]
    snapshots = Snapshot.objects.in_bulk({event.snapshot_id for event in deleted}) if deleted else {}
    for event in deleted:
        event.snapshot = snapshots.get(event.snapshot_id)
