"""``Match``: which entities belong to which context, as a key that both sides can compute.

``{"guest_id": "{{ ctx.guest_id }}"}`` means: the entity's ``guest_id`` equals the context's. The context's side gives
values, the entity's side is read through its attributes, and both are digested into a *routing key*; an index finds
equal keys however many there are. Values are typed by the model's field first, so ``"5"`` in a context matches ``5`` in
a column, as the ORM would have it. The names of the looked-up fields are the match's *shape*; the entity's side has to
compute one key for each shape that somebody waits with.

Expressions reach only the fields of the Context: no calls, no tags, no private names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from django.core.exceptions import FieldDoesNotExist, ObjectDoesNotExist
from django.db import models
from pydantic import BaseModel

from ..exceptions import DefinitionError
from ..queues.keys import digest
from .definitions import Declared

_EXPRESSION = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_PATH = re.compile(r"^(?:ctx|context)((?:\.[A-Za-z][A-Za-z0-9_]*)+)$")


def check_expression(text: str, what: str) -> None:
    """Raise ``DefinitionError`` unless every expression in ``text`` names a field of the Context."""
    if "{%" in text or "{#" in text:
        raise DefinitionError(f"{what}: {text!r} has a template tag; only {{{{ ctx.field }}}} is allowed.")
    for found in _EXPRESSION.findall(text):
        if not _PATH.match(found):
            raise DefinitionError(
                f"{what}: {{{{ {found} }}}} is not allowed; write {{{{ ctx.field }}}} with a field of the Context "
                "(no calls, no filters, no names that begin with an underscore)."
            )
    rest = _EXPRESSION.sub("", text)
    if "{{" in rest or "}}" in rest:
        raise DefinitionError(f"{what}: {text!r} has an expression that is not closed.")


def evaluate(value: Any, context: Any) -> Any:
    """Return ``value`` with its expressions filled in from ``context``.

    A text that is one expression gives the native value; text around it gives a text; anything else is itself.
    """
    if not isinstance(value, str) or "{{" not in value:
        return value
    alone = _EXPRESSION.fullmatch(value.strip())
    if alone:
        return _reach(alone.group(1), context)
    return _EXPRESSION.sub(lambda found: str(_reach(found.group(1), context)), value)


def _reach(path: str, context: Any) -> Any:
    match = _PATH.match(path)
    if match is None:
        raise DefinitionError(f"{{{{ {path} }}}} is not an expression on the Context.")
    value = context
    for name in match.group(1)[1:].split("."):
        if isinstance(value, BaseModel) and name in type(value).model_fields:
            value = getattr(value, name)
        elif isinstance(value, Mapping) and name in value:
            value = value[name]
        else:
            raise DefinitionError(f"{{{{ {path} }}}}: {type(value).__name__} has no field {name!r}.")
    return value


@dataclass(frozen=True, slots=True)
class Match:
    """Lookups of an entity, and the values (or expressions) that they must equal. Immutable."""

    lookups: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, lookups: Mapping[str, Any], what: str) -> Match:
        """Make a match. Raises ``DefinitionError`` for what is no lookup, and for expressions that reach too far."""
        if not isinstance(lookups, Mapping):
            raise DefinitionError(f"{what}: match={lookups!r} must be a dict of lookups and values.")
        for name, value in lookups.items():
            if not isinstance(name, str) or not re.match(r"^[A-Za-z][A-Za-z0-9_]*$", name):
                raise DefinitionError(f"{what}: {name!r} is not a field lookup.")
            if isinstance(value, str):
                check_expression(value, what)
            elif isinstance(value, list | tuple | set | dict):
                raise DefinitionError(
                    f"{what}: {name!r} is compared with {value!r}; a wait compares single values. "
                    "Wait with match={} and look at the payload, or put what you wait for into one field."
                )
        return cls(tuple(sorted((name.removesuffix("__exact"), value) for name, value in lookups.items())))

    @property
    def shape(self) -> str:
        return ",".join(name for name, _ in self.lookups)

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.lookups)

    def values_from(self, context: Any) -> dict[str, Any]:
        """Return the lookups with the values of ``context``. Raises ``DefinitionError`` for an unknown field."""
        return {name: evaluate(value, context) for name, value in self.lookups}


def routing_key(event_name: str, values: Mapping[str, Any], declared: Iterable[Declared]) -> str:
    """Return the key of the context's side. ``declared``: where the event comes from, whose fields type the values."""
    owners = [each.owner for each in declared]
    parts = [canonical(_typed(owners, name, value)) for name, value in sorted(values.items())]
    return digest("match", event_name, ",".join(sorted(values)), *parts)


def entity_keys(event_name: str, entity: models.Model | None, shapes: Iterable[str]) -> list[str]:
    """Return the keys of the entity's side, one for each shape that it has the fields for."""
    if entity is None:
        return []
    keys = []
    for shape in shapes:
        names = sorted(shape.split(",")) if shape else []
        try:
            parts = [canonical(_read(entity, name)) for name in names]
        except (AttributeError, ObjectDoesNotExist):
            continue
        keys.append(digest("match", event_name, ",".join(names), *parts))
    return keys


def _read(entity: Any, lookup: str) -> Any:
    value, names = entity, lookup.split("__")
    for number, name in enumerate(names):
        if value is None:
            return None
        key = _foreign_key(value, name, names[number + 1 :])
        if key is not None:
            return getattr(value, key)
        value = value.pk if name == "pk" else getattr(value, name)
    return value.pk if isinstance(value, models.Model) else value


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


def resolve_field(model: type[models.Model], lookup: str) -> Any:
    """Return the field that ``lookup`` ends in. Raises ``FieldDoesNotExist``, also for ``status__in`` and the like."""
    field: Any = None
    current: Any = model
    for name in lookup.split("__"):
        if current is None:
            raise FieldDoesNotExist(f"{lookup!r}: {name!r} is not a field of {field}")
        field = current._meta.pk if name == "pk" else current._meta.get_field(name)
        if field.many_to_many or field.one_to_many:
            raise FieldDoesNotExist(f"{lookup!r}: {name!r} has many values, and a key is made of one")
        current = field.related_model if field.is_relation else None
    return field


def _typed(owners: list[type[models.Model]], lookup: str, value: Any) -> Any:
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
            return value  # not a value of this field: it equals nothing, and says so by not matching
    return value


def canonical(value: Any) -> str:
    """Return a text that is equal for values that a database calls equal, and different otherwise."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"bool:{value}"
    if isinstance(value, int | float | Decimal):
        number = Decimal(str(value))
        # Adding zero makes one of 0 and -0.
        return f"number:{number.normalize() + 0:f}" if number.is_finite() else f"number:{number}"
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        return f"datetime:{moment.isoformat()}"
    if isinstance(value, date):
        return f"date:{value.isoformat()}"
    return f"{'text' if isinstance(value, str) else type(value).__name__}:{value}"
