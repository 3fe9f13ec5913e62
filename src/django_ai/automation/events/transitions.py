"""``Transition``: from which values (``was``) to which (``becomes``) an entity must change for an event to occur.

Pure: the caller brings the values before and after a write. A row that does not exist has none: it satisfies nothing,
so a creation may satisfy ``becomes`` alone, and a deletion ``was`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models

from ..exceptions import DefinitionError
from ..values.callables import check_parameters, check_synchronous
from ..values.canonical import canonical
from .changes import Values, as_stored, values_of

Expected = Mapping[str, Any]
"""What fields must be, by name: a value, a list of values, or a function of the value."""

ALTERNATIVES = (list, tuple, set, frozenset)


@dataclass(frozen=True, slots=True)
class Transition:
    """What the fields of an entity are before and after a write that counts. At least one of the two names a field."""

    was: Expected
    becomes: Expected

    @classmethod
    def of(cls, was: Any, becomes: Any, what: str) -> Transition | None:
        """Return the transition of the arguments ``was=`` and ``becomes=`` of a definition, or None without them.

        Raises ``DefinitionError`` for an invalid argument.
        """
        if was is None and becomes is None:
            return None
        found = cls(_checked(was, f"{what}: was"), _checked(becomes, f"{what}: becomes"))
        if found.was == found.becomes and not any(map(_has_several, found.was.values())):
            raise DefinitionError(f"{what}: was= and becomes= are equal, so it never occurs. Change one of them.")
        return found

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that are compared."""
        return tuple(dict.fromkeys((*self.was, *self.becomes)))

    def holds(self, model: type[models.Model], before: Values | None, after: Values | None) -> bool:
        """Return whether a write of ``model`` from ``before`` to ``after`` counts; None: the row does not exist.

        Raises whatever a function of the project raises.
        """
        if not self.was:
            return _satisfy(model, self.becomes, after) and not _satisfy(model, self.becomes, before)
        if not self.becomes:
            return _satisfy(model, self.was, before) and not _satisfy(model, self.was, after)
        return (
            before is not None
            and after is not None
            and any(canonical(before[name]) != canonical(after[name]) for name in self.fields)
            and _satisfy(model, self.was, before)
            and _satisfy(model, self.becomes, after)
        )


def alternatives(expected: Any) -> tuple[Any, ...]:
    """Return the values that a field may have; none, if a function decides."""
    if callable(expected):
        return ()
    several = expected if isinstance(expected, ALTERNATIVES) else (expected,)
    return tuple(each.value if isinstance(each, Enum) else each for each in several)


def _has_several(expected: Any) -> bool:
    return len(alternatives(expected)) != 1


def _satisfy(model: type[models.Model], expected: Expected, values: Values | None) -> bool:
    return values is not None and all(_fits(model, name, each, values[name]) for name, each in expected.items())


def fits(entity: models.Model, name: str, expected: Any) -> bool:
    """Return whether the value of a field of ``entity`` is what ``was=`` or ``becomes=`` expects of it. Raises whatever
    a function of the project raises."""
    return _fits(type(entity), name, expected, values_of(entity, [name])[name])


def _fits(model: type[models.Model], name: str, expected: Any, actual: Any) -> bool:
    if callable(expected):
        return bool(expected(actual))
    field = model._meta.get_field(name)
    return canonical(actual) in {canonical(_typed(field, each)) for each in alternatives(expected)}


def _typed(field: Any, value: Any) -> Any:
    """Return ``value`` with the type of ``field``. What is no value of it is returned, and matches nothing."""
    if isinstance(value, models.Model):
        return value.pk
    with suppress(ValidationError, TypeError, ValueError):
        return as_stored(field, value)
    return value


def _checked(expected: Any, what: str) -> Expected:
    """Return a copy of ``expected``. Raises ``DefinitionError`` unless it maps names of fields to what they must be."""
    if expected is None:
        return {}
    if not isinstance(expected, Mapping) or not expected:
        raise DefinitionError(f'{what}={expected!r} must be a dict of fields and values, as in {{"status": "draft"}}.')
    for name, value in expected.items():
        if not isinstance(name, str) or not name:
            raise DefinitionError(f"{what} names {name!r}, which is not the name of a field.")
        if "__" in name:
            raise DefinitionError(
                f"{what} names {name!r}: lookups are not supported. Name a field of the model, and give a list of its "
                "values or a function of its value."
            )
        if isinstance(value, ALTERNATIVES) and (not value or any(map(callable, value))):
            raise DefinitionError(f"{what}: {name}={value!r} must be a list of one value or more, without functions.")
        if isinstance(value, type):
            raise DefinitionError(f"{what}: {name}={value!r} is a class; give a value, a list of values or a function.")
        if callable(value):
            _check_function(value, f"{what}: {name}")
    return dict(expected)


def _check_function(function: Callable[..., Any], what: str) -> None:
    check_synchronous(function, what)
    check_parameters(function, what, "value")
