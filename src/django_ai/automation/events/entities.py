"""Entities: read the model instances that events are about, many with one query."""

from __future__ import annotations

from collections.abc import Iterable

from django.apps import apps

from ..db.writer import alias_of
from .models import Event, Snapshot
from .models.event import inherit_snapshots


def is_installed(label: str) -> bool:
    """Return whether this code has the model ``label`` that rows refer to."""
    try:
        apps.get_model(label)
    except (LookupError, ValueError):
        return False
    return True


def load_entities(events: Iterable[Event]) -> None:
    """Read the entities of ``events`` with one query for each model. Deleted entities are restored from snapshots."""
    by_model: dict[str, list[Event]] = {}
    events = list(events)
    for event in events:
        if event.snapshot_id is None:
            by_model.setdefault(event.entity_type, []).append(event)
    for label, group in by_model.items():
        try:
            model = apps.get_model(label)
        except (LookupError, ValueError):
            continue
        inherit_snapshots(label, [event for event in group if event.active_key is None])
        group = [event for event in group if event.snapshot_id is None]
        pks = {event.pk: model._meta.pk.to_python(event.entity_id) for event in group}
        entities = model._base_manager.using(alias_of(model)).in_bulk(list(set(pks.values())))
        for event in group:
            event.entity = entities.get(pks[event.pk])
    deleted = [event for event in events if event.snapshot_id is not None and "_entity" not in event.__dict__]
    snapshots = Snapshot.objects.in_bulk({event.snapshot_id for event in deleted}) if deleted else {}
    for event in deleted:
        event.snapshot = snapshots.get(event.snapshot_id)
