"""Snapshots: a deleted entity as JSON values, and as an unsaved instance again."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

from django.apps import apps
from django.core import serializers
from django.db import models

from ..db.writer import from_writer
from ..exceptions import NotStorableError, SnapshotFieldError
from ..values.json_text import MicrosecondEncoder, encode
from .declarations import kept_fields


@from_writer()
def take_snapshot(entity: models.Model) -> dict[str, Any]:
    """Return the columns of the entity as JSON values, or only those that its definitions keep."""
    (snapshot,) = json.loads(serializers.serialize("json", [entity], cls=MicrosecondEncoder))
    parents = [
        json.loads(serializers.serialize("json", [_as_parent(entity, parent)], cls=MicrosecondEncoder))[0]["fields"]
        for parent in entity._meta.all_parents
    ]
    for fields in reversed(parents):
        snapshot["fields"] = {**fields, **snapshot["fields"]}
    snapshot["model"] = entity._meta.label_lower
    kept = kept_fields(type(entity))
    if kept is not None:
        snapshot["left_out"] = sorted(set(snapshot["fields"]) - kept)
    # A value that JSON cannot hold in every database (NaN) is omitted: it must not prevent the deletion of a row.
    snapshot["fields"] = {
        name: value
        for name, value in snapshot["fields"].items()
        if (kept is None or name in kept) and _is_storable(value)
    }
    return dict(snapshot)


def _is_storable(value: Any) -> bool:
    try:
        encode(value, "A snapshot")
    except NotStorableError:
        return False
    return True


def _as_parent(entity: models.Model, parent: type[models.Model]) -> models.Model:
    return parent(**{field.attname: getattr(entity, field.attname) for field in parent._meta.concrete_fields})


def restore_snapshot(snapshot: dict[str, Any]) -> models.Model | None:
    """Return an unsaved instance with the values of a snapshot, without columns that were removed since."""
    model = apps.get_model(snapshot["model"])
    values = {}
    for field in model._meta.concrete_fields:
        if field.name in snapshot["fields"]:
            values[field.attname] = (
                field.to_python(snapshot["fields"][field.name])
                if not field.is_relation
                else (field.target_field.to_python(snapshot["fields"][field.name]))
            )
    entity: models.Model = model(**values)
    entity.pk = model._meta.pk.to_python(snapshot["pk"])
    for parent in model._meta.all_parents:
        setattr(entity, parent._meta.pk.attname, entity.pk)
    entity._state.adding = False
    entity._automation_snapshot = True  # type: ignore[attr-defined]
    for name in snapshot.get("left_out", ()):
        field = next((each for each in model._meta.concrete_fields if each.name == name), None)
        if field is not None and not field.primary_key:
            del entity.__dict__[field.attname]  # deferred: an access calls refresh_from_db
    if "left_out" in snapshot:
        entity.refresh_from_db = functools.partial(_raise_snapshot_field_error, entity)  # type: ignore[method-assign]
    return entity


def _raise_snapshot_field_error(entity: models.Model, *args: Any, fields: Iterable[str] = (), **kwargs: Any) -> None:
    names = ", ".join(fields) or "its fields"
    raise SnapshotFieldError(
        f"{entity._meta.label} {entity.pk} was deleted, and its snapshot does not contain {names}: add it to "
        "snapshot_fields= of one of its EventDefinitions, or omit snapshot_fields."
    )
