"""Inserts that skip rows with a conflict on a unique key, and raise nothing.

``INSERT ... ON CONFLICT DO NOTHING``, on MariaDB ``INSERT IGNORE``: never check-then-create.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.constants import OnConflict
from django.db.models.sql import InsertQuery

from .mariadb import MAX_WARNINGS, raise_ignored_errors
from .writer import alias_of

M = TypeVar("M", bound=models.Model)


def column_of(field: models.Field[Any, Any]) -> str:
    return str(field.column)


def insertable_fields(model: type[models.Model]) -> list[models.Field[Any, Any]]:
    return [field for field in model._meta.concrete_fields if not field.primary_key]


@lru_cache(maxsize=512)
def field_of(model: type[models.Model], name: str) -> Any:
    return model._meta.get_field(name)


def insert_ignoring(model: type[M], rows: Sequence[M], key: str | None = None) -> int:
    """Insert ``rows`` in one statement and skip those that conflict on a unique key. Return how many were inserted.

    Never raises on a conflict, so it may run inside the caller's transaction. With ``key``, a unique column, it sets
    the primary keys of the inserted rows; the others keep ``None``.
    """
    if not rows:
        return 0
    connection = connections[alias_of(model)]
    if connection.vendor != "mysql":
        return _insert_ignoring(model, rows, key, connection)
    with transaction.atomic(using=connection.alias, savepoint=False):
        return _insert_ignoring(model, rows, key, connection)


def _insert_ignoring(model: type[M], rows: Sequence[M], key: str | None, connection: BaseDatabaseWrapper) -> int:
    is_mysql = connection.vendor == "mysql"
    quote = connection.ops.quote_name
    fields = insertable_fields(model)
    size = max(connection.ops.bulk_batch_size(fields, rows), 1)
    if is_mysql:
        size = min(size, MAX_WARNINGS)  # each skipped row gives a warning, and all of them are checked
    returning = (
        f" RETURNING {quote(column_of(model._meta.pk))}, {quote(column_of(field_of(model, key)))}" if key else ""
    )
    inserted = 0
    with connection.cursor() as cursor:
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            query = InsertQuery(model, on_conflict=OnConflict.IGNORE)
            query.insert_values(fields, list(chunk))
            ((sql, params),) = query.get_compiler(connection.alias).as_sql()
            cursor.execute(sql + returning, params)
            if key:
                pks = {value: pk for pk, value in cursor.fetchall()}
                inserted += len(pks)
                for row in chunk:
                    row.pk = pks.get(getattr(row, key))
            else:
                inserted += cursor.rowcount
            if is_mysql:
                raise_ignored_errors(cursor, model._meta.label)
    return inserted
