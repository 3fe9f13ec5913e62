"""``timezone=`` of an ``EventDefinition``: where the time zone of an entity is found.

It is one of three: a fixed zone, a path of fields from the entity to the name of a zone, or a function of the entity.
A string with a slash, and ``"UTC"``, names a fixed zone; no path has a slash. Any other string is a path. A zone whose
name has no slash is given as an object: ``ZoneInfo("CET")``.

Like ``definitions``, this module imports no models, because models modules import it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from django.core.exceptions import ObjectDoesNotExist
from django.db import models

from ..exceptions import DefinitionError, UnknownTimeZoneError
from ..values.callables import check_parameters, check_synchronous
from ..values.zones import find_zone, key_of, nearest_zone, zone_named

TimeZone: TypeAlias = str | tzinfo | Callable[[Any], str | tzinfo | None]

MAX_ZONE_NAME = 63
"""The length of the column; the longest name of the IANA database has 32 characters."""


def checked_zone(given: Any, what: str) -> TimeZone:
    """Return a fixed zone as a ``ZoneInfo``, a path as a string, or the function. Raises ``DefinitionError``."""
    if isinstance(given, str) and ("/" in given or given == "UTC"):
        return zone_named(given, what) or given
    if isinstance(given, str):
        if not all(each.isidentifier() for each in given.split("__")):
            raise DefinitionError(
                f'{what}={given!r} is neither a path of fields, as in "hotel__tz", nor the name of a time zone, as in '
                '"Europe/Berlin".'
            )
        return given
    if isinstance(given, tzinfo):
        found = find_zone(key_of(given))
        if found is None:
            raise DefinitionError(
                f'{what}={given!r} is a time zone without a name. Give a ZoneInfo, as in ZoneInfo("Europe/Berlin").'
            )
        return found
    if not callable(given) or isinstance(given, type):
        raise DefinitionError(
            f'{what}={given!r} must be a path of fields, as in "hotel__tz", a ZoneInfo, or a function of the entity.'
        )
    check_synchronous(given, what)
    check_parameters(given, what, "entity")
    function: Callable[[Any], str | tzinfo | None] = given
    return function


def zone_name(given: TimeZone, entity: models.Model, event_name: str) -> str:
    """Return the name of the time zone of ``entity``, or ``""`` for ``TIME_ZONE``.

    Raises ``UnknownTimeZoneError``, and whatever the project's function raises.
    """
    if isinstance(given, ZoneInfo):
        return given.key
    found = given(entity) if callable(given) else follow(entity, str(given))
    if found is None or found == "":
        return ""
    name = found if isinstance(found, str) else key_of(found)
    if name is None or len(name) > MAX_ZONE_NAME or find_zone(name) is None:
        where = "its function" if callable(given) else repr(given)
        hint = nearest_zone(found) if isinstance(found, str) else "Give a name, as a string, or a ZoneInfo."
        raise UnknownTimeZoneError(
            f"{entity._meta.label} {entity.pk}: the time zone of its event {event_name!r}, from {where}, is {found!r}, "
            f"which does not exist. {hint} Correct it, or leave it empty for TIME_ZONE, and resume the event if it is "
            "parked."
        )
    return name


def follow(entity: models.Model, path: str) -> Any:
    """Return the value at the end of ``path``; None where a relation on the way has no row."""
    value: Any = entity
    for name in path.split("__"):
        try:
            value = getattr(value, accessor_of(value._meta.get_field(name)))
        except ObjectDoesNotExist:
            return None
        if value is None:
            return None
    return value


def accessor_of(field: Any) -> str:
    """Return the attribute of an instance that has the value of ``field``, or the row of a relation."""
    return str(field.get_accessor_name() if field.auto_created and not field.concrete else field.name)


def leads_to_one_row(field: Any) -> bool:
    """Return whether ``field`` is a relation from one row to at most one, of a known model."""
    return bool(field.is_relation and (field.many_to_one or field.one_to_one) and field.related_model is not None)


def is_zone_field(field: Any) -> bool:
    """Return whether ``field`` may have the name of a time zone: it has text, or is of a class of its own."""
    if field.is_relation:
        return False
    is_text = isinstance(field, models.CharField | models.TextField | models.GeneratedField)
    return is_text or not type(field).__module__.startswith("django.")


def fields_on(model: type[models.Model], path: str) -> list[Any]:
    """Return the fields of ``path``: relations to one row, and a field that has a value.

    Raises ``FieldDoesNotExist`` for an unknown one, and ``DefinitionError`` for one of another kind.
    """
    *hops, last = path.split("__")
    found: list[Any] = []
    for name in hops:
        found.append(model._meta.get_field(name))
        if not leads_to_one_row(found[-1]):
            raise DefinitionError(f"{model._meta.label}.{name} does not lead to one row.")
        model = found[-1].related_model
    found.append(model._meta.get_field(last))
    if not is_zone_field(found[-1]):
        raise DefinitionError(f"{model._meta.label}.{last} does not have the name of a time zone.")
    return found
