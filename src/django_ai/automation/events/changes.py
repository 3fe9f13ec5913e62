"""Changes: the values of an entity's fields before and after a write, compared, stored with the event, and read back.

Values are compared and handed out as the database returns them, whatever an instance holds (``"5"`` for a number). A
relation is its key, and JSON is what JSON keeps of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import models
from django.utils.encoding import is_protected_type

from ..exceptions import NotStorableError
from ..values.canonical import canonical
from ..values.json_text import MicrosecondEncoder, encode

Values = Mapping[str, Any]
"""The values of the fields that a definition names, by these names."""

Stored = dict[str, list[Any]]
"""What a row keeps: by field, the value before and after, as JSON."""


@dataclass(frozen=True, slots=True)
class Change:
    """The values before and after a write, by the names that a definition uses; None: the row does not exist."""

    before: Values | None
    after: Values | None

    def is_changed(self, name: str) -> bool:
        return _differ(_get(self.before, name), _get(self.after, name))

    def stored(self, model: type[models.Model], names: Iterable[str], *, changed_only: bool) -> Stored:
        """Return the values of the fields ``names`` as a row keeps them, or only of those that changed."""
        return {
            name: [_as_json(model, name, _get(values, name)) for values in (self.before, self.after)]
            for name in names
            if self.is_changed(name) or not changed_only
        }


def _get(values: Values | None, name: str) -> Any:
    return None if values is None else values[name]


def _differ(one: Any, other: Any) -> bool:
    return canonical(one) != canonical(other)


def values_of(entity: models.Model, names: Iterable[str]) -> Values:
    """Return the values of the fields ``names`` of an instance, as the database returns them."""
    found = {}
    for name in names:
        field: Any = entity._meta.get_field(name)
        found[name] = as_stored(field, getattr(entity, field.attname))
    return found


def as_stored(field: Any, value: Any) -> Any:
    """Return ``value`` of ``field`` as the database returns it, for an instance may hold it in another form."""
    field = _plain(field)
    if value is None:
        return None
    value = field.to_python(value)
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(field, models.FileField):
        return str(value)
    if isinstance(field, models.DecimalField) and isinstance(value, Decimal) and value.is_finite():
        return round(value, field.decimal_places)
    if isinstance(field, models.JSONField):
        return json.loads(json.dumps(value, cls=field.encoder))
    return value


def _plain(field: Any) -> Any:
    """Return the field that has the values of a relation."""
    while field.is_relation:
        field = field.target_field
    return field


def _as_json(model: type[models.Model], name: str, value: Any) -> Any:
    """Return a value as JSON; None for what JSON cannot hold in every database (NaN, NUL characters)."""
    if value is None:
        return None
    field = _plain(model._meta.get_field(name))
    if not isinstance(field, models.JSONField) and not is_protected_type(value):
        value = field.value_to_string(SimpleNamespace(**{field.attname: value}))
    try:
        found = json.loads(json.dumps(value, cls=MicrosecondEncoder))
        encode(found, f"A value of {name!r}")
    except (NotStorableError, TypeError, ValueError):
        return None
    return found


def changes_of(label: str, stored: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """Return what has changed, with the types of the fields of the model ``label``."""
    return {name: pair for name, pair in _typed(label, stored or {}).items() if _differ(*pair)}


def json_changes(label: str, stored: Mapping[str, Any]) -> Stored:
    """Return what has changed as JSON, for payloads."""
    return {name: list(stored[name]) for name in changes_of(label, stored)}


def recorded_change(label: str, stored: Mapping[str, Any], *, created: bool) -> Change:
    """Return the change that a row has stored, to evaluate its transition again. A deletion is not evaluated again."""
    typed = _typed(label, stored)
    before = {name: pair[0] for name, pair in typed.items()}
    after = {name: pair[1] for name, pair in typed.items()}
    return Change(None if created else before, after)


def _typed(label: str, stored: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        return {name: (pair[0], pair[1]) for name, pair in stored.items()}
    return {name: (_from_json(model, name, pair[0]), _from_json(model, name, pair[1])) for name, pair in stored.items()}


def _from_json(model: type[models.Model], name: str, value: Any) -> Any:
    # A field may have been removed, or have got another type, since the row was written.
    with suppress(FieldDoesNotExist, ValidationError, TypeError, ValueError):
        field = _plain(model._meta.get_field(name))
        if value is not None and not isinstance(field, models.JSONField):
            return as_stored(field, value)
    return value
