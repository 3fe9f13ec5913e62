"""``Match``: which entities belong to which context, as a key that both sides can compute.

``{"guest_id": "{{ ctx.guest_id }}"}`` means: the entity's ``guest_id`` equals the context's. The context's side gives
values, the entity's side is read through its attributes, and both are digested into a *routing key*; an index finds
equal keys however many there are. Values are typed by the model's field first, so ``"5"`` in a context matches ``5`` in
a column, as the ORM would have it. The names of the looked-up fields are the match's *shape*; the entity's side has to
compute one key for each shape that somebody waits with. What is no equality (``amount__gte``) is the *residual*: the
database compares it, on the few that the key leaves. A short list for ``status__in`` can become a key for each value.

Expressions reach only the fields of the Context: no calls, no tags, no private names.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from itertools import product
from typing import Any, TypeVar

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import connections, models, transaction
from django.db.models import F
from pydantic import BaseModel

from ...db.errors import is_database_failure
from ...db.writer import alias_of, from_writer
from ...exceptions import DefinitionError
from ...values.digests import digest
from ..definitions import Declared
from ..expressions import EXPRESSION, check_expressions, path_of

ROOTS = ("ctx", "context")


def check_expression(text: str, what: str, context: type[BaseModel] | None = None) -> None:
    """Raise ``DefinitionError`` unless every expression in ``text`` names a field of the Context (``context``, where it
    is known)."""
    for name, *_ in check_expressions(text, what, *ROOTS):
        if context is not None and name not in context.model_fields:
            near = get_close_matches(name, context.model_fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(context.model_fields)}."
            raise DefinitionError(f"{what}: {text!r}: its Context has no field {name!r}. {hint}")


def evaluate(value: Any, context: Any) -> Any:
    """Return ``value`` with its expressions filled in from ``context``.

    A text that is one expression gives the native value; text around it gives a text; anything else is itself.
    """
    if not isinstance(value, str) or "{{" not in value:
        return value
    alone = EXPRESSION.fullmatch(value.strip())
    if alone:
        return _reach(alone.group(1), context)
    return EXPRESSION.sub(lambda found: str(_reach(found.group(1), context)), value)


def field_named(value: Any, context: type[BaseModel]) -> Any:
    """Return the field of ``context`` that an expression stands for alone, or None."""
    alone = EXPRESSION.fullmatch(value.strip()) if isinstance(value, str) else None
    path = path_of(alone.group(1), *ROOTS) if alone else None
    return context.model_fields.get(path[0]) if path and len(path) == 1 else None


def _reach(slot: str, context: Any) -> Any:
    path = path_of(slot, *ROOTS)
    if path is None:
        raise DefinitionError(f"{{{{ {slot} }}}} is not an expression on the Context.")
    value = context
    for name in path:
        if isinstance(value, BaseModel) and name in type(value).model_fields:
            value = getattr(value, name)
        elif isinstance(value, Mapping) and name in value:
            value = value[name]
        else:
            raise DefinitionError(f"{{{{ {slot} }}}}: {type(value).__name__} has no field {name!r}.")
    return value


@dataclass(frozen=True, slots=True)
class Match:
    """Lookups of an entity, and the values (or expressions) that they are compared with. Immutable."""

    lookups: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, lookups: Mapping[str, Any], what: str, context: type[BaseModel] | None = None) -> Match:
        """Make a match. ``context``: the class whose fields its expressions may name, where it is known.

        Raises ``DefinitionError`` for what is no lookup, and for expressions that reach too far.
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
    def text(self) -> str:
        """A text that tells this match from all others."""
        return json.dumps([[name, plain(value)] for name, value in self.lookups])

    def is_all_exact(self, sources: Sequence[Declared]) -> bool:
        """Say whether keys are all there is to it: nothing is ever left to compare."""
        owners = [each.owner for each in sources]
        return all(is_exact(owners, name) for name in self.names())

    def shapes(self, sources: Sequence[Declared]) -> list[str]:
        """Return the shapes that addresses of this match have, whatever the context."""
        owners = [each.owner for each in sources]
        exact = [name for name in self.names() if is_exact(owners, name)]
        listed = [name for name in self.names() if _listed_field(owners, name)]
        whole = shape_of([*exact, *(name.removesuffix(IN) for name in listed)])
        return [whole] if not listed else [whole, shape_of(exact)]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a match with its values is to be found: under which ``keys`` of one ``shape``, and what is then left to
    compare (``residual``)."""

    shape: str
    keys: tuple[str, ...]
    residual: dict[str, Any]


IN = "__in"
MANY = 100
"""A list of more values than this does not become keys of its own; the database compares it."""


def address(scope: str, values: Mapping[str, Any], sources: Sequence[Declared], *, spread: bool = False) -> Address:
    """Return where entities that match ``values`` are found. ``scope``: what the keys are for, so that equal values do
    not meet elsewhere. ``sources``: the declarations whose models type the values. ``spread``: a short list given for
    ``field__in`` becomes one key a value.

    Raises ``DefinitionError`` for ``__in`` without a list.
    """
    owners = [each.owner for each in sources]
    parts: dict[str, list[str]] = {}
    residual: dict[str, Any] = {}
    for name, value in values.items():
        if name.endswith(IN) and not isinstance(value, list | tuple | set | frozenset):
            raise DefinitionError(f"match for {scope!r}: {name!r} needs a list of values, and got {value!r}.")
        if is_exact(owners, name):
            # Where several models declare the event, each has its own type for the field.
            typed = [[owner] for owner in owners if _has_field(owner, name)] if spread else [owners]
            parts[name] = sorted({canonical(_typed(each, name, value)) for each in typed or [owners]})
        elif spread and _listed_field(owners, name) and len(value) <= MANY // max(1, _product(parts)):
            field = name.removesuffix(IN)
            found = {canonical(_typed(owners, field, each)) for each in value if each is not None}
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


@from_writer()
def entity_keys(scope: str, entity: models.Model | None, shapes: Iterable[str]) -> list[str]:
    """Return the keys of the entity's side, one for each shape that it has the fields for."""
    if entity is None:
        return []
    keys = []
    for shape in shapes:
        names = shape.split(",") if shape else []
        try:
            parts = [canonical(_read(entity, name)) for name in names]
        except Exception as error:  # it has no such field, or a descriptor of the project's raises
            if is_database_failure(error, connections[alias_of(type(entity))]):
                raise
            continue
        keys.append(_key(scope, names, parts))
    return keys


def within(namespace: str, key: str) -> str:
    """Return the key of those who look under ``key`` for events of one namespace."""
    return digest("namespace", namespace, key)


def is_exact(owners: Iterable[type[models.Model]], name: str) -> bool:
    """Say whether ``name`` is a field of one value, compared for equality, on one of ``owners``. Where nobody declares
    the event, every name is taken for one."""
    known = list(owners)
    return not known or any(_has_field(owner, name) for owner in known)


def _listed_field(owners: Iterable[type[models.Model]], name: str) -> bool:
    return name.endswith(IN) and is_exact(owners, name.removesuffix(IN)) and not is_exact(owners, name)


def _has_field(owner: type[models.Model], name: str) -> bool:
    try:
        resolve_field(owner, name)
    except FieldDoesNotExist:
        return False
    return True


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
        return compares([type(entity)], path, lookup, _read(entity, path), value)
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
    theirs: Any = value if is_number else _typed(owners, path, value)
    if lookup == "in":
        theirs = [_typed(owners, path, each) for each in value]
    typed = mine if is_number else _typed(owners, path, mine)
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


def _read(entity: Any, lookup: str) -> Any:
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
    if isinstance(value, list | tuple | Mapping):
        return f"json:{json.dumps(value, sort_keys=True, default=str)}"
    return f"{'text' if isinstance(value, str) else type(value).__name__}:{value}"


def plain(value: Any) -> Any:
    """Return ``value`` as JSON keeps it; a model's field makes the same of it again."""
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, models.Model):
        value = value.pk
    if isinstance(value, Enum):
        value = value.value
    return value if isinstance(value, int | float | bool | None) else str(value)
