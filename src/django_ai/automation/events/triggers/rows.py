"""The rows that a trigger inserts into the outbox, as SQL: the same columns on every database.

Columns are those that the tables have in the database, whatever the models say: a trigger is also replaced in the
middle of a migration (``schema_changes``). What it cannot know from the tables is in a comment in its body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from ...db.database_clock import DATABASE_NOW_SQL
from ...values.digests import digest
from ..capture import Model, root_of
from ..models import CapturedWrite

PREFIX = "automation_capture_"
"""How the names of all triggers and functions begin."""
MAX_KEY = 255
_COMMENT = re.compile(r"/\* automation: (\{.*?\}) \*/")


@dataclass(frozen=True, slots=True)
class Capture:
    """A table whose writes are captured.

    ``label``: of the model of the table. ``root``: of the model that names the entity. ``key``: the column of the
    primary key. ``key_type``: ``"uuid"``, ``"text"`` or ``""``. ``model``: the model, if it is known; it may be a
    historical one of a migration.
    """

    table: str
    label: str
    root: str
    key: str
    key_type: str
    model: Model | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, model: Model) -> Capture:
        """Return the capture of the table of ``model``."""
        pk: Any = model._meta.pk
        key: Any = pk
        while key.is_relation:  # the key of a child looks like that of the root, which it refers to
            key = key.target_field
        key_type = ""
        if isinstance(key, models.UUIDField):
            key_type = "uuid"
        elif isinstance(key, models.CharField | models.TextField):
            key_type = "text"
        root = root_of(model)._meta.label_lower
        return cls(model._meta.db_table, model._meta.label_lower, root, str(pk.column), key_type, model)

    @classmethod
    def of_trigger(cls, table: str, body: str) -> Capture | None:
        """Return what the trigger on ``table`` with this body captures; None: its body is not ours."""
        found = _COMMENT.search(body)
        return None if found is None else cls(table, **json.loads(found[1]))

    @property
    def name_of_model(self) -> str:
        """How messages name the model."""
        return self.label if self.model is None else self.model._meta.label

    @property
    def comment(self) -> str:
        """The comment in the body of the triggers, from which ``of_trigger`` reads the capture."""
        known = {"label": self.label, "root": self.root, "key": self.key, "key_type": self.key_type}
        text = json.dumps(known).replace("*/", "*\\/")
        return f"/* automation: {text} */"

    @property
    def name(self) -> str:
        """The name of the triggers, and of the function on PostgreSQL, without the operation."""
        return f"{PREFIX}{digest(self.table)[:12]}"

    def with_columns(self, columns: Sequence[Column]) -> Capture:
        """Return the capture with the key that the table has now: its column may have been renamed."""
        keys = [column.name for column in columns if column.is_key]
        if len(keys) != 1 or any(column.name == self.key for column in columns):
            return self
        return replace(self, key=keys[0])


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table in the database. ``is_text``: its collation may take two values for equal. ``is_binary``: it
    is written in hexadecimal digits."""

    name: str
    is_key: bool = False
    is_text: bool = False
    is_binary: bool = False


def columns_of_model(capture: Capture, connection: BaseDatabaseWrapper) -> list[Column]:
    """Return the columns that the table of a model will have (``sqlmigrate``: there is no such table yet)."""
    found = []
    for each in () if capture.model is None else capture.model._meta.local_concrete_fields:
        kind = str(each.db_type(connection)).lower()
        is_binary, is_text = "blob" in kind, "char" in kind or "text" in kind
        found.append(Column(str(each.column), each.primary_key, is_text, is_binary))
    return found


def literal(value: Any) -> str:
    """Return ``value`` as an SQL literal. Labels and defaults have no quotes or backslashes, but tables may."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(int(value))
    return "'" + str(value).replace("'", "''") + "'"


def now_sql(connection: BaseDatabaseWrapper) -> str:
    return DATABASE_NOW_SQL[connection.vendor].replace("%%", "%")


def outbox_table() -> str:
    return CapturedWrite._meta.db_table


def outbox_columns(
    capture: Capture,
    connection: BaseDatabaseWrapper,
    present: Iterable[Column],
    operation: str,
    key: str,
    old: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Return the columns of a new outbox row and their SQL.

    ``present``: the columns of the outbox; none: there is no outbox yet. ``key``: the primary key as text. ``old``: the
    JSON of the old values. ``extra``: columns that only some databases fill. Every other column gets its default.
    """
    given = {
        "wake_at": now_sql(connection),
        "written_at": now_sql(connection),
        "entity_type": literal(capture.root),
        "entity_id": key,
        "model": literal(capture.label),
        "operation": literal(operation),
        "old": old,
        **extra,
    }
    names = {column.name for column in present}
    fields: list[models.Field[Any, Any]] = [
        each
        for each in CapturedWrite._meta.local_concrete_fields
        if not each.primary_key and (not names or each.column in names)
    ]
    return {
        connection.ops.quote_name(str(each.column)): given.get(each.name, literal(each.get_default()))
        for each in fields
    }


def key_sql(capture: Capture, row: str, connection: BaseDatabaseWrapper) -> str:
    """Return the SQL of the primary key of ``row`` (NEW or OLD) as ``entity_id_of`` writes it (SQLite, MariaDB)."""
    column = f"{row}.{connection.ops.quote_name(capture.key)}"
    if capture.key_type == "uuid" and not connection.features.has_native_uuid_field:
        parts = [f"substr({column}, {start}, {size})" for start, size in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))]
        return f"concat_ws('-', {', '.join(parts)})" if connection.vendor == "mysql" else " || '-' || ".join(parts)
    if capture.key_type == "text":
        return f"substr({column}, 1, {MAX_KEY})"
    return text_sql(column, connection)


def text_sql(column: str, connection: BaseDatabaseWrapper) -> str:
    """Return the SQL of ``column`` as text."""
    kind = "CHAR CHARACTER SET utf8mb4" if connection.vendor == "mysql" else "TEXT"
    return f"CAST({column} AS {kind})"
