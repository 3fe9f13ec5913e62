"""Lookups: read a lookup such as ``room__number`` from an entity, and compare what a routing key cannot express."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, TypeVar

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import connections, models, transaction
from django.db.models import F

from ...db.errors import is_database_failure
from ...db.writer import alias_of, from_writer
from .typed_values import typed_value


@from_writer()
def satisfies(entity: models.Model, residual: Mapping[str, Any]) -> bool:
    """Say whether ``entity`` fits what is left to compare: asked of the database. One that was deleted is compared
    here, with the lookups that need no database."""
    if not residual:
        return True
    if is_deleted(entity):
        return all(_holds_here(entity, name, value) for name, value in residual.items())
    rows = type(entity)._base_manager.using(alias_of(type(entity)))
    return bool(ask(rows.db, lambda: rows.filter(pk=entity.pk, **residual).exists()))


T = TypeVar("T")


def ask(alias: str, question: Callable[[], T]) -> T | None:
    """Return what the project's tables answer, or None where the question makes no sense to them: a value that a field
    cannot have, a regular expression that is none, a field or lookup of the project's that raises. Somebody's odd value
    must not stop an event for all others.

    A surrounding transaction survives it. The database's own trouble is raised.
    """
    connection = connections[alias]
    try:
        if not connection.in_atomic_block:
            return question()
        with transaction.atomic(using=connection.alias):
            return question()
    except Exception as error:
        if is_database_failure(error, connection):
            raise
        return None


def is_deleted(entity: models.Model) -> bool:
    """Say whether ``entity`` is a snapshot (or was deleted just now), and no row of its table any more."""
    return getattr(entity, "_automation_snapshot", False) or entity.pk is None


COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "in": lambda one, others: one in others,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "isnull": lambda one, wanted: (one is None) is bool(wanted),
}


def _holds_here(entity: models.Model, name: str, value: Any) -> bool:
    path, _, lookup = name.rpartition("__")
    if lookup not in COMPARED:
        return False
    try:
        return compares([type(entity)], path, lookup, read_lookup(entity, path), value)
    except Exception as error:  # it has no such field, or a descriptor or a value of the project's raises
        if is_database_failure(error, connections[alias_of(type(entity))]):
            raise
        return False


def compares(owners: list[type[models.Model]], path: str, lookup: str, mine: Any, value: Any) -> bool:
    """Return whether ``mine``, a value of the field ``path``, compares so with ``value``. Raises ``TypeError``."""
    if lookup == "isnull":
        return COMPARED[lookup](mine, value)
    # A number is compared as it is: 5.5 is no 5, though a column of whole numbers would make it one.
    is_number = isinstance(mine, int | float | Decimal) and isinstance(value, int | float | Decimal)
    theirs: Any = value if is_number else typed_value(owners, path, value)
    if lookup == "in":
        theirs = [typed_value(owners, path, each) for each in value]
    typed = mine if is_number else typed_value(owners, path, mine)
    return mine is not None and bool(COMPARED[lookup](typed, theirs))


PROBES: Mapping[str, Any] = {"in": [], "range": (F("pk"), F("pk")), "isnull": True}


def problem_with(owner: type[models.Model], name: str) -> str:
    """Return what is wrong with the lookup ``name`` on ``owner`` in Django's own words, or an empty text."""
    probe = PROBES.get(name.rpartition("__")[2], F("pk"))
    try:
        owner._base_manager.filter(**{name: probe})
    except (FieldError, ValueError, TypeError) as error:
        known = [field.name for field in owner._meta.get_fields()]
        near = get_close_matches(name.split("__")[0], known, n=1)
        return f"{error}" + (f" Did you mean {near[0]!r}?" if near and near[0] not in name.split("__") else "")
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
            raise AttributeError(f"{value!r} has no field {name!r}.")  # a property would be code of the project's
        value = value.pk if name == "pk" else getattr(value, name)
    return value.pk if isinstance(value, models.Model) else value


def _is_field(entity: models.Model, name: str) -> bool:
    try:
        entity._meta.get_field(name)
    except FieldDoesNotExist:
        return False
    return True


def _foreign_key(entity: Any, name: str, rest: list[str]) -> str | None:
    """Return the column that answers ``name`` and the ``rest`` of a lookup without a query: the relation's own."""
    if not isinstance(entity, models.Model) or name == "pk":
        return None
    try:
        field: Any = entity._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    if not (field.is_relation and field.concrete) or field.many_to_many:
        return None
    asks_for_key = not rest or rest == ["pk"] or rest == [field.target_field.name]
    return str(field.attname) if asks_for_key else None
