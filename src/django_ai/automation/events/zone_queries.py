"""Time zones of entities in queries: the rows on the way to them, and their names as the database knows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from django.core.exceptions import FieldDoesNotExist
from django.db import models, router
from django.db.models import F, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

from ..db.writer import alias_of
from ..exceptions import DefinitionError
from .definitions import EventDefinition
from .zones import accessor_of, fields_on


def with_zones(rows: models.QuerySet[Any, Any], definitions: Iterable[EventDefinition]) -> models.QuerySet[Any, Any]:
    """Let ``rows`` of entities read also the rows on the way to their time zones, in the same query."""
    for definition in definitions:
        if isinstance(definition.timezone, str) and (relations := _relations(rows.model, definition.timezone)):
            rows = rows.select_related("__".join(relations))
    return rows


def load_zones(entities: Sequence[models.Model], definitions: Iterable[EventDefinition]) -> None:
    """Read the rows on the way to the time zones of ``entities``, with one query for each relation.

    For entities of one class that ``with_zones`` cannot read: those that are locked, because the other rows would be
    locked, too; and those as they were after an earlier write, which no query returns.
    """
    # Of a column that is younger than the deletion of an entity nothing is known; reading it needs the entity's row.
    known = [entity for entity in entities if not entity.get_deferred_fields()]
    for definition in definitions:
        if known and isinstance(definition.timezone, str):
            fields = _fields(type(known[0]), definition.timezone) or []
            if path := "__".join(accessor_of(field) for field in fields[:-1]):
                models.prefetch_related_objects(known, path)


def _relations(model: type[models.Model], path: str) -> list[str]:
    """Return the names of the relations on ``path``; none if there are none, or if one query cannot read them."""
    fields = _fields(model, path)
    return [] if fields is None else path.split("__")[:-1]


def _fields(model: type[models.Model], path: str) -> list[Any] | None:
    """Return the fields of ``path``, or None if one query cannot follow it."""
    try:
        found = fields_on(model, path)
    except (FieldDoesNotExist, DefinitionError):  # a check names it, and so does what reading it raises
        return None
    for field in found[:-1]:
        # A reference to a row that does not exist means TIME_ZONE, and an inner join would leave the entity out.
        is_certain = getattr(field, "db_constraint", True)
        if not is_certain or router.db_for_write(field.related_model) != alias_of(model):
            return None
    return found


def stored_zone(model: type[models.Model], definition: EventDefinition) -> str | Combinable | None:
    """Return what ``definition.timezone_of`` returns: a string if it is the same for all entities, an expression if a
    query can read it, or None if only Python knows it."""
    given = definition.timezone
    if given is None:
        return ""
    if isinstance(given, ZoneInfo):
        return given.key
    fields = _fields(model, given) if isinstance(given, str) else None
    if fields is None or fields[-1].get_internal_type() not in ("CharField", "TextField"):
        return None
    return Coalesce(F(str(given)), Value(""), output_field=models.CharField())
