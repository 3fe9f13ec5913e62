"""Typed values: convert a value to the type of a model field, or of a field of a payload.

An *owner* gives the types: a model, or a ``FreeEvent`` with the fields of its payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models

from ...values.canonical import canonical as canonical
from ..free_events import FreeEvent
from ..sources import Owner
from . import payload_fields


def is_exact(owners: Iterable[Owner], name: str) -> bool:
    """Return whether ``name`` is a single-valued field, compared for equality, of one of ``owners``.

    Without ``owners`` (nothing declares the event) every name counts as one. Beside models, a payload without a schema,
    which may have any field, does not count.
    """
    known = list(owners)
    if any(not isinstance(owner, FreeEvent) for owner in known):
        known = [owner for owner in known if not isinstance(owner, FreeEvent) or owner.schema is not None]
    return not known or any(has_field(owner, name) for owner in known)


def has_field(owner: Owner, name: str) -> bool:
    if isinstance(owner, FreeEvent):
        return payload_fields.has_field(owner.schema, name)
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


def typed_value(owners: Sequence[Owner], lookup: str, value: Any) -> Any:
    if isinstance(value, models.Model):
        return value.pk
    for owner in owners:
        if isinstance(owner, FreeEvent):
            return payload_fields.typed_field(owner.schema, lookup, value)
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


def json_value(value: Any) -> Any:
    """Return ``value`` as stored in JSON; the model field converts it back to the same value."""
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(each) for each in value]
    if isinstance(value, models.Model):
        value = value.pk
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, datetime):
        return value.isoformat()  # as a payload has it
    return value if isinstance(value, int | float | bool | None) else str(value)
