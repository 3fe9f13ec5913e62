"""Typed values: convert a value to the type of a model field, and write it as a canonical string for a digest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models


def is_exact(owners: Iterable[type[models.Model]], name: str) -> bool:
    """Return whether ``name`` is a single-valued field, compared for equality, of one of ``owners``.

    Without ``owners`` (no model declares the event) every name counts as one.
    """
    known = list(owners)
    return not known or any(has_field(owner, name) for owner in known)


def has_field(owner: type[models.Model], name: str) -> bool:
    try:
        resolve_field(owner, name)
    except FieldDoesNotExist:
        return False
    return True


def resolve_field(model: type[models.Model], lookup: str) -> Any:
    """Return the last field of ``lookup``. Raises ``FieldDoesNotExist``, also for lookups such as ``status__in``."""
    field: Any = None
    current: Any = model
    for name in lookup.split("__"):
        if current is None:
            raise FieldDoesNotExist(f"{lookup!r}: {name!r} is not a field of {field}")
        field = current._meta.pk if name == "pk" else current._meta.get_field(name)
        if field.many_to_many or field.one_to_many:
            raise FieldDoesNotExist(f"{lookup!r}: {name!r} has many values, and a routing key needs exactly one")
        current = field.related_model if field.is_relation else None
    return field


def typed_value(owners: list[type[models.Model]], lookup: str, value: Any) -> Any:
    if isinstance(value, models.Model):
        return value.pk
    for owner in owners:
        try:
            field = resolve_field(owner, lookup)
        except FieldDoesNotExist:
            continue
        while field.is_relation and hasattr(field, "target_field"):
            field = field.target_field
        try:
            return field.to_python(value)
        except Exception:
            return value  # not a value of this field: it matches nothing
    return value


def canonical(value: Any) -> str:
    """Return a string that is equal for values that a database compares as equal, and different otherwise."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"bool:{value}"
    if isinstance(value, int | float | Decimal):
        number = Decimal(str(value))
        # Adding zero normalizes -0 to 0.
        return f"number:{number.normalize() + 0:f}" if number.is_finite() else f"number:{number}"
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        return f"datetime:{moment.isoformat()}"
    if isinstance(value, date):
        return f"date:{value.isoformat()}"
    if isinstance(value, list | tuple | Mapping):
        return f"json:{json.dumps(value, sort_keys=True, default=str)}"
    return f"{'text' if isinstance(value, str) else type(value).__name__}:{value}"


def json_value(value: Any) -> Any:
    """Return ``value`` as stored in JSON; the model field converts it back to the same value."""
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(each) for each in value]
    if isinstance(value, models.Model):
        value = value.pk
    if isinstance(value, Enum):
        value = value.value
    return value if isinstance(value, int | float | bool | None) else str(value)
