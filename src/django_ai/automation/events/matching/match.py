"""``Match``: which entities belong to which Context, by a key that both sides can compute.

``{"guest_id": "{{ ctx.guest_id }}"}`` means: the ``guest_id`` of the entity equals that of the Context. The values come
from the Context, the entity's attributes are read, and a digest of either is the *routing key*; an index finds equal
keys however many there are. Values are converted to the type of the model field first, so ``"5"`` in a Context matches
``5`` in a column, as in the ORM. The names of the compared fields are the *shape* of the match; an entity computes one
key for each shape in use. Lookups that are no equality (``amount__gte``) are the *residual*: the database compares them
for the few entities that the key selects. A short list for ``status__in`` can become one key for each value.

An event without an entity (``FreeEvent``) has its payload in place of it: the fields of the payload are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from django.db import connections, models
from pydantic import BaseModel

from ...db.errors import is_database_failure
from ...db.writer import alias_of, from_writer
from ...exceptions import DefinitionError
from ...values.digests import digest
from ..free_events import FreeEvent
from ..sources import Owner, Source, owners_of
from .context_expressions import check_expression, evaluate
from .lookups import read_lookup
from .payload_fields import read_field
from .typed_values import canonical, has_field, is_exact, json_value, typed_value

if TYPE_CHECKING:
    from ..models import Event


@dataclass(frozen=True, slots=True)
class Match:
    """Lookups of an entity, and the values (or expressions) that they are compared with. Immutable."""

    lookups: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, lookups: Mapping[str, Any], what: str, context: type[BaseModel] | None = None) -> Match:
        """Return the match for ``lookups``. ``context``: the Context class that its expressions may read, if known.

        Raises ``DefinitionError`` for an invalid lookup or expression.
        """
        if not isinstance(lookups, Mapping):
            raise DefinitionError(f"{what}: match={lookups!r} must be a dict of lookups and values.")
        for name, value in lookups.items():
            if not isinstance(name, str) or not re.match(r"^[A-Za-z][A-Za-z0-9_]*$", name):
                raise DefinitionError(f"{what}: {name!r} is not a field lookup.")
            if isinstance(value, str):
                check_expression(value, what, context)
            elif isinstance(value, Mapping):
                raise DefinitionError(f"{what}: {name!r} is compared with {value!r}; give a value or a list of values.")
        return cls(tuple(sorted((name.removesuffix("__exact"), value) for name, value in lookups.items())))

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.lookups)

    def values_from(self, context: Any) -> dict[str, Any]:
        """Return the lookups with the values of ``context``. Raises ``DefinitionError`` for an unknown field."""
        return {name: evaluate(value, context) for name, value in self.lookups}

    @property
    def identity(self) -> str:
        """A string that identifies this match."""
        return json.dumps([[name, json_value(value)] for name, value in self.lookups])

    def is_all_exact(self, sources: Sequence[Source]) -> bool:
        """Return whether routing keys are enough: no lookup is residual."""
        owners = owners_of(sources)
        return all(is_exact(owners, name) for name in self.names())

    def shapes(self, sources: Sequence[Source]) -> list[str]:
        """Return the shapes that addresses of this match can have, for any Context."""
        owners = owners_of(sources)
        exact = [name for name in self.names() if is_exact(owners, name)]
        listed = [name for name in self.names() if _listed_field(owners, name)]
        whole = shape_of([*exact, *(name.removesuffix(IN_SUFFIX) for name in listed)])
        return [whole] if not listed else [whole, shape_of(exact)]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a match with its values is found: the ``keys`` of one ``shape``, and the lookups that are then compared
    (``residual``)."""

    shape: str
    keys: tuple[str, ...]
    residual: dict[str, Any]


IN_SUFFIX = "__in"
MAX_LIST_KEYS = 100
"""The longest list that becomes routing keys; the database compares longer ones."""


def address(scope: str, values: Mapping[str, Any], sources: Sequence[Source], *, spread: bool = False) -> Address:
    """Return where entities (or payloads of free events) that match ``values`` are found.

    ``scope``: what the keys are for; equal values in another scope have other keys. ``sources``: the declarations
    whose models give the types of the values. ``spread``: a short list for ``field__in`` becomes one key for each
    value. Raises ``DefinitionError`` for ``__in`` without a list.
    """
    owners = owners_of(sources)
    parts: dict[str, list[str]] = {}
    residual: dict[str, Any] = {}
    for name, value in values.items():
        if name.endswith(IN_SUFFIX) and not isinstance(value, list | tuple | set | frozenset):
            raise DefinitionError(f"match for {scope!r}: {name!r} needs a list of values, not {value!r}.")
        if is_exact(owners, name):
            # Several models may declare the event, with different types of the field.
            typed = [[owner] for owner in owners if has_field(owner, name)] if spread else [owners]
            parts[name] = sorted({canonical(typed_value(each, name, value)) for each in typed or [owners]})
        elif spread and _listed_field(owners, name) and len(value) <= MAX_LIST_KEYS // max(1, _product(parts)):
            field = name.removesuffix(IN_SUFFIX)
            found = {canonical(typed_value(owners, field, each)) for each in value if each is not None}
            parts[field] = sorted(found & set(parts[field]) if field in parts else found)
        else:
            residual[name] = sorted(value, key=str) if isinstance(value, set | frozenset) else value
    names = sorted(parts)
    keys = tuple(_key(scope, names, each) for each in product(*(parts[name] for name in names)))
    return Address(shape_of(names), keys, residual)


def _product(parts: Mapping[str, Sequence[str]]) -> int:
    return math.prod(len(each) for each in parts.values())


def shape_of(names: Iterable[str]) -> str:
    return ",".join(sorted(names))


def _key(scope: str, names: Sequence[str], parts: Iterable[str]) -> str:
    return digest("match", scope, ",".join(names), *parts)


def event_keys(scope: str, event: Event, shapes: Iterable[str]) -> list[str]:
    """Return the routing keys of the event's entity, or of its payload if it has no entity."""
    return payload_keys(scope, event, shapes) if event.is_free else entity_keys(scope, event.entity, shapes)


def payload_keys(scope: str, event: Event, shapes: Iterable[str]) -> list[str]:
    """Return the routing keys of the payload of a free event, one for each shape whose fields it has."""
    definition = event.definition
    owners = [definition] if isinstance(definition, FreeEvent) else []
    keys = []
    for shape in shapes:
        names = shape.split(",") if shape else []
        try:
            parts = [canonical(typed_value(owners, name, read_field(event.payload, name))) for name in names]
        except LookupError:
            continue
        keys.append(_key(scope, names, parts))
    return keys


@from_writer()
def entity_keys(scope: str, entity: models.Model | None, shapes: Iterable[str]) -> list[str]:
    """Return the routing keys of the entity, one for each shape whose fields it has."""
    if entity is None:
        return []
    keys = []
    for shape in shapes:
        names = shape.split(",") if shape else []
        try:
            parts = [canonical(read_lookup(entity, name)) for name in names]
        except Exception as error:  # a missing field, or a descriptor of the project that raises
            if is_database_failure(error, connections[alias_of(type(entity))]):
                raise
            continue
        keys.append(_key(scope, names, parts))
    return keys


def namespaced_key(namespace: str, key: str) -> str:
    """Return the key that corresponds to ``key`` for events of one namespace."""
    return digest("namespace", namespace, key)


def _listed_field(owners: Iterable[Owner], name: str) -> bool:
    return name.endswith(IN_SUFFIX) and is_exact(owners, name.removesuffix(IN_SUFFIX)) and not is_exact(owners, name)
