"""Fields of a payload: which names a match may compare, their types, and their values.

A name is a key of the payload, or a path through nested objects (``customer__id``). With a schema (the Pydantic model
of a ``FreeEvent``) names are checked and values are converted to the type of the field, as the columns of a model do it
for entities. Without a schema a payload is what JSON makes of it: a number is not equal to a string.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from datetime import date, datetime, time
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from .comparisons import COMPARISONS

Schema = type[BaseModel] | None

DATABASE_LOOKUPS = frozenset(
    [
        "contains",
        "endswith",
        "icontains",
        "iendswith",
        "iexact",
        "iregex",
        "istartswith",
        "range",
        "regex",
        "startswith",
    ]
)
"""Lookups of the ORM that only a database compares."""


def split_lookup(name: str) -> tuple[str, str]:
    """Return the path of ``name`` and its lookup; an empty lookup is equality."""
    path, _, last = name.rpartition("__")
    return (path, last) if path and (last in COMPARISONS or last in DATABASE_LOOKUPS) else (name, "")


def has_field(schema: Schema, name: str) -> bool:
    """Return whether ``name`` is a field that is compared for equality."""
    path, lookup = split_lookup(name)
    return not lookup and not _problem_with_path(schema, path)


def problem_with_field(schema: Schema, name: str) -> str:
    """Return what is wrong with the lookup ``name``, with the fix, or an empty string."""
    path, lookup = split_lookup(name)
    if lookup in DATABASE_LOOKUPS:
        return f"A payload is compared for equality and by {', '.join(f'__{each}' for each in COMPARISONS)} only."
    return _problem_with_path(schema, path)


def _problem_with_path(schema: Schema, path: str) -> str:
    found: Any = schema
    for name in path.split("__"):
        model = _model_in(found)
        if model is None:
            return ""  # any value may be there
        if name not in model.model_fields:
            if model.model_config.get("extra") == "allow":
                return ""
            near = get_close_matches(name, model.model_fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(model.model_fields)}."
            return f"{model.__name__} has no field {name!r}. {hint}"
        found = model.model_fields[name].annotation
    return ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the Pydantic model in ``annotation``, also in an optional one (``Customer | None``)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        found = [each for each in typing.get_args(annotation) if each is not type(None)]
        return _model_in(found[0]) if len(found) == 1 else None
    return None


def annotation_of(schema: Schema, path: str) -> Any:
    """Return the annotation of the field ``path``, or None where the schema leaves it open."""
    found: Any = schema
    for name in path.split("__"):
        model = _model_in(found)
        if model is None or name not in model.model_fields:
            return None
        found = model.model_fields[name].annotation
    return found


@lru_cache(maxsize=1024)
def _adapter(schema: type[BaseModel], path: str) -> TypeAdapter[Any] | None:
    annotation = annotation_of(schema, path)
    if annotation is None:
        return None
    try:
        return TypeAdapter(annotation, config=ConfigDict(coerce_numbers_to_str=True))
    except PydanticUserError:  # a model has a configuration of its own
        return TypeAdapter(annotation)


def typed_field(schema: Schema, path: str, value: Any) -> Any:
    """Return ``value`` converted to the type of the field ``path``; a value that is none of its type is unchanged."""
    adapter = None if schema is None else _adapter(schema, path)
    if adapter is None:
        return as_json(value)
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return value


def as_json(value: Any) -> Any:
    """Return ``value`` in the form that it has in a payload of JSON values."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def read_field(payload: Any, path: str) -> Any:
    """Return the value of ``path`` in ``payload``. Raises ``LookupError`` if there is none."""
    if isinstance(payload, Mapping) and path in payload:
        return payload[path]
    found = payload
    for name in path.split("__"):
        if not isinstance(found, Mapping) or name not in found:
            raise LookupError(path)
        found = found[name]
    return found
