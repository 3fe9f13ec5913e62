"""Whether a saved instance may differ from its row.

A field accepts more than it returns: a string for a number, more decimal places than the column has, an expression.
Conditions are evaluated with the stored values, so such an instance is read again; any other instance costs nothing.
"""

from __future__ import annotations

import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import django
from django.db import models

PYTHON_TYPES: tuple[tuple[type[models.Field[Any, Any]], type], ...] = (
    (models.BooleanField, bool),
    (models.IntegerField, int),
    (models.FloatField, float),
    (models.DecimalField, Decimal),
    (models.DateTimeField, datetime),
    (models.DateField, date),
    (models.TimeField, time),
    (models.DurationField, timedelta),
    (models.UUIDField, uuid.UUID),
    (models.CharField, str),
    (models.TextField, str),
)


def may_differ(entity: models.Model) -> bool:
    """Return whether reading ``entity`` again may give another value in one of its columns."""
    if getattr(entity._state, "automation_is_stored", False):  # made of what the database has, by captured writes
        return False
    return any(
        _may_differ(field, entity.__dict__[field.attname])
        for field in entity._meta.concrete_fields
        if field.attname in entity.__dict__
    )


def _may_differ(field: Any, value: Any) -> bool:
    if field.generated:
        # Django 6 reads it back after the save, or defers it.
        return django.VERSION < (6, 0)
    if value is None:
        return False
    if hasattr(value, "resolve_expression"):
        return True
    while field.is_relation:
        field = field.target_field
    expected = next((each for kind, each in PYTHON_TYPES if isinstance(field, kind)), None)
    if expected is None:
        return False
    if not isinstance(value, expected):
        return True
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        return not isinstance(exponent, int) or (field.decimal_places is not None and -exponent > field.decimal_places)
    return expected is date and isinstance(value, datetime)
