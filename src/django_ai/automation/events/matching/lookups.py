"""Lookups: read a lookup such as ``room__number`` from an entity, and compare what a routing key cannot express."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import connections, models, transaction
from django.db.models import F

from ...db.errors import is_database_failure
from ...db.writer import alias_of, from_writer
from ..free_events import FreeEvent
from ..sources import Owner
from . import payload_fields
from .comparisons import COMPARISONS
from .typed_values import canonical, typed_value

if TYPE_CHECKING:
    from ..models import Event


@from_writer()
def satisfies(entity: models.Model, residual: Mapping[str, Any]) -> bool:
    """Return whether the database finds that ``entity`` matches the residual lookups.

    The snapshot of a deleted entity is compared in Python, with the lookups that need no database.
    """
    if not residual:
        return True
    if is_deleted(entity):
        return all(_matches_snapshot(entity, name, value) for name, value in residual.items())
    rows = type(entity)._base_manager.using(alias_of(type(entity)))
    return bool(query_or_none(rows.db, lambda: rows.filter(pk=entity.pk, **residual).exists()))


def event_satisfies(event: Event, residual: Mapping[str, Any]) -> bool:
    """Return whether the entity of ``event``, or its payload if it has no entity, matches the residual lookups."""
    if not residual:
        return True
    if event.is_free:
        definition = event.definition
        owners = [definition] if isinstance(definition, FreeEvent) else []
        return payload_satisfies(owners, event.payload or {}, residual)
    return event.entity is not None and satisfies(event.entity, residual)


def payload_satisfies(owners: Sequence[Owner], payload: Mapping[str, Any], residual: Mapping[str, Any]) -> bool:
    """Return whether ``payload`` matches the residual lookups. One that needs the database is never satisfied.

    ``owners`` give the types of the values.
    """
    for name, value in residual.items():
        path, lookup = payload_fields.split_lookup(name)
        try:
            actual = payload_fields.read_field(payload, path)
            if not lookup:
                is_equal = canonical(typed_value(owners, path, actual)) == canonical(typed_value(owners, path, value))
                if not is_equal:
                    return False
            elif lookup not in COMPARISONS or not compare(owners, path, lookup, actual, value):
                return False
        except (LookupError, TypeError):
            return False
    return True


T = TypeVar("T")


def query_or_none(alias: str, query: Callable[[], T]) -> T | None:
    """Return the result of ``query`` on the project's tables, or None if it raises.

    It raises for a value that the field cannot hold, an invalid regular expression, or a broken custom field or lookup.
    Such a value in one run must not stop the event for all others. A surrounding transaction stays usable. Database
    failures are raised.
    """
    connection = connections[alias]
    try:
        if not connection.in_atomic_block:
            return query()
        with transaction.atomic(using=connection.alias):
            return query()
    except Exception as error:
        if is_database_failure(error, connection):
            raise
        return None


def is_deleted(entity: models.Model) -> bool:
    """Return whether ``entity`` is a snapshot or was just deleted, so that its table has no row of it."""
    return getattr(entity, "_automation_snapshot", False) or entity.pk is None


def _matches_snapshot(entity: models.Model, name: str, value: Any) -> bool:
    path, _, lookup = name.rpartition("__")
    if lookup not in COMPARISONS:
        return False
    try:
        return compare([type(entity)], path, lookup, read_lookup(entity, path), value)
    except Exception as error:  # a missing field, or a descriptor or value of the project that raises
        if is_database_failure(error, connections[alias_of(type(entity))]):
            raise
        return False


def compare(owners: Sequence[Owner], path: str, lookup: str, actual: Any, value: Any) -> bool:
    """Return whether ``actual``, a value of the field ``path``, satisfies ``lookup``. Raises ``TypeError``."""
    if lookup == "isnull":
        return COMPARISONS[lookup](actual, value)
    # Numbers are compared unconverted: an integer field would convert 5.5 to 5.
    is_number = isinstance(actual, int | float | Decimal) and isinstance(value, int | float | Decimal)
    expected: Any = value if is_number else typed_value(owners, path, value)
    if lookup == "in":
        expected = [typed_value(owners, path, each) for each in value]
    typed = actual if is_number else typed_value(owners, path, actual)
    return actual is not None and bool(COMPARISONS[lookup](typed, expected))


PROBE_VALUES: Mapping[str, Any] = {"in": [], "range": (F("pk"), F("pk")), "isnull": True}


def problem_with(owner: Owner, name: str) -> str:
    """Return the error message for the lookup ``name`` on ``owner``, or an empty string."""
    if isinstance(owner, FreeEvent):
        return payload_fields.problem_with_field(owner.schema, name)
    probe = PROBE_VALUES.get(name.rpartition("__")[2], F("pk"))
    try:
        owner._base_manager.filter(**{name: probe})
    except (FieldError, ValueError, TypeError) as error:
        fields = owner._meta.get_fields()
        known = [*(each.name for each in fields), *(each.attname for each in fields if hasattr(each, "attname"))]
        near = get_close_matches(name.split("__")[0], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near and near[0] not in name.split("__") else ""
        return f"{str(error).removesuffix('.')}.{hint}"
    return ""


def read_lookup(entity: Any, lookup: str) -> Any:
    value, names = entity, lookup.split("__")
    for number, name in enumerate(names):
        if value is None:
            return None
        key = _foreign_key(value, name, names[number + 1 :])
        if key is not None:
            return getattr(value, key)
        if name != "pk" and not _is_field(value, name):
            raise AttributeError(f"{value!r} has no field {name!r}.")  # a property would run code of the project
        value = value.pk if name == "pk" else getattr(value, name)
    return value.pk if isinstance(value, models.Model) else value


def _is_field(entity: models.Model, name: str) -> bool:
    try:
        entity._meta.get_field(name)
    except FieldDoesNotExist:
        return False
    return True


def _foreign_key(entity: Any, name: str, rest: list[str]) -> str | None:
    """Return the foreign key column that has the value of ``name`` and the ``rest`` of a lookup without a query."""
    if not isinstance(entity, models.Model) or name == "pk":
        return None
    try:
        field: Any = entity._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    if not (field.is_relation and field.concrete) or field.many_to_many:
        return None
    is_key = not rest or rest == ["pk"] or rest == [field.target_field.name]
    return str(field.attname) if is_key else None
