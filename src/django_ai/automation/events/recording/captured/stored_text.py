"""The text that triggers write of a column's old value, and the Python value that Django would have read.

Text is what the outbox has: ``to_jsonb`` on PostgreSQL, casts on SQLite and MariaDB. ``column_text`` in
``events/triggers`` writes it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

from django.db import DatabaseError, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime, parse_duration, parse_time


def value_of(field: Any, text: str | None, connection: BaseDatabaseWrapper) -> Any:
    """Return the value of ``field`` that Django reads where the database has ``text``."""
    while field.is_relation:
        field = field.target_field
    value = _as_read(field, text, connection)
    column = field.get_col(field.model._meta.db_table)
    for converter in field.get_db_converters(connection):
        value = converter(value, column, connection)
    return value


def _as_read(field: Any, text: str | None, connection: BaseDatabaseWrapper) -> Any:
    """Return what the backend returns for ``text``, before the converters of the field."""
    if text is None:
        return None
    if hasattr(field, "base_field"):  # an array
        return [_as_read(field.base_field, _as_text(each), connection) for each in json.loads(text)]
    kind = field.get_internal_type()
    with suppress(ValueError, TypeError, ArithmeticError):
        if kind == "DateTimeField":
            moment = parse_datetime(text)
            if moment is not None and timezone.is_naive(moment):
                return moment.replace(tzinfo=connection.timezone)
            return moment
        if kind == "DecimalField":
            return round(Decimal(text), field.decimal_places)
        if kind == "DurationField" and not connection.features.has_native_duration_field:
            return int(text)  # microseconds, which the field converts
        known = PARSERS.get(kind)
        if known is not None:
            return known(text)
    if connection.vendor == "postgresql" and kind not in TEXT_TYPES and not isinstance(field, TEXT_FIELDS):
        return _cast(field, text, connection)
    return text


PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        (
            "AutoField",
            "BigAutoField",
            "BigIntegerField",
            "IntegerField",
            "PositiveBigIntegerField",
            "PositiveIntegerField",
            "PositiveSmallIntegerField",
            "SmallAutoField",
            "SmallIntegerField",
        ),
        int,
    ),
    "BinaryField": lambda text: bytes.fromhex(text.removeprefix("\\x")),
    "BooleanField": lambda text: text in ("1", "t", "true"),
    "DateField": lambda text: parse_date(text[:10]),
    "DurationField": parse_duration,
    "FloatField": float,
    "TimeField": parse_time,
    "UUIDField": uuid.UUID,
}
"""How to parse the text of a column, by the internal type of its field."""

TEXT_TYPES = {"CharField", "TextField", "SlugField", "FileField", "FilePathField", "GenericIPAddressField", "JSONField"}
TEXT_FIELDS = (models.CharField, models.TextField, models.JSONField)


def _as_text(value: Any) -> str | None:
    """Return an element of a JSON list as ``jsonb_each_text`` writes it."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _cast(field: Any, text: str, connection: BaseDatabaseWrapper) -> Any:
    """Let PostgreSQL convert the text of a type of its own (a range, an interval of years)."""
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute(f"SELECT CAST(%s AS {field.db_type(connection)})", [text])
            return cursor.fetchone()[0]
    except DatabaseError:
        return text
