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
            sql, params = _compiled_once(model, fields, chunk, connection) or _compiled(
                model, fields, chunk, connection
            )
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


def _compiled(
    model: type[M], fields: Sequence[models.Field[Any, Any]], rows: Sequence[M], connection: BaseDatabaseWrapper
) -> tuple[str, Sequence[Any]]:
    query = InsertQuery(model, on_conflict=OnConflict.IGNORE)
    query.insert_values(fields, list(rows))
    ((sql, params),) = query.get_compiler(connection.alias).as_sql()
    return sql, params


def _compiled_once(
    model: type[M], fields: Sequence[models.Field[Any, Any]], rows: Sequence[M], connection: BaseDatabaseWrapper
) -> tuple[str, Sequence[Any]] | None:
    """Return the statement that Django compiles for these rows, from a cache, and its parameters. None: Django must
    compile it, because there are many rows, or because a value is an expression.

    Each ``save()`` of a model with events inserts a few rows, and compiling takes a third of the time of the insert.
    """
    if len(rows) > MAX_ROWS_OF_CACHED_STATEMENTS or not _has_plain_placeholders(model):
        return None
    params: list[Any] = []
    for row in rows:
        for field in fields:
            value = field.pre_save(row, True)
            if hasattr(value, "resolve_expression"):
                return None
            params.append(field.get_db_prep_save(value, connection))
    at = (connection.vendor, model, len(rows))
    sql = _statements.get(at)
    if sql is None:
        sql = _statements[at] = _insert_statement(model, fields, len(rows), connection)
    return sql, params


MAX_ROWS_OF_CACHED_STATEMENTS = 8
_statements: dict[tuple[str, type[models.Model], int], str] = {}


@lru_cache(maxsize=512)
def _has_plain_placeholders(model: type[models.Model]) -> bool:
    return not any(
        hasattr(field, "get_placeholder") or hasattr(field, "get_placeholder_sql") for field in insertable_fields(model)
    )


def _insert_statement(
    model: type[models.Model], fields: Sequence[models.Field[Any, Any]], count: int, connection: BaseDatabaseWrapper
) -> str:
    names = [column_of(field) for field in fields]
    into = f"{connection.ops.insert_statement(OnConflict.IGNORE)} {connection.ops.quote_name(model._meta.db_table)}"
    columns = ", ".join(map(connection.ops.quote_name, names))
    row = f"({', '.join(['%s'] * len(names))})"
    suffix = connection.ops.on_conflict_suffix_sql(list(fields), OnConflict.IGNORE, [], [])
    return f"{into} ({columns}) VALUES {', '.join([row] * count)} {suffix}".rstrip()


def insert_similar_ignoring(model: type[M], rows: Sequence[M]) -> int:
    """Insert thousands of ``rows`` that differ in few columns, like ``insert_ignoring`` without a key.

    On PostgreSQL in one statement with one parameter for each column that is the same in all rows, and one array for
    each other column: this takes a third of the time in Python, where most of the time goes.
    """
    connection = connections[alias_of(model)]
    if connection.vendor != "postgresql" or len(rows) < 2:
        return insert_ignoring(model, rows)
    quote = connection.ops.quote_name
    columns: list[str] = []
    selected: list[str] = []
    given: list[str] = []
    params: list[Any] = []
    arrays: list[list[Any]] = []
    for field in insertable_fields(model):
        values = [getattr(row, field.attname) for row in rows]
        kind = str(field.db_type(connection))
        is_same = all(value == values[0] for value in values)
        if not is_same and isinstance(field, models.JSONField):
            return insert_ignoring(model, rows)  # the driver has no array of JSON
        columns.append(quote(column_of(field)))
        if is_same:
            selected.append(f"%s::{kind}")
            params.append(field.get_db_prep_save(values[0], connection))
        else:
            selected.append(f"given.v{len(given)}")
            given.append(f"%s::{kind.partition('(')[0]}[]")
            arrays.append([field.get_db_prep_save(value, connection) for value in values])
    if not given:
        return insert_ignoring(model, rows)
    names = ", ".join(f"v{number}" for number in range(len(given)))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(model._meta.db_table)} ({', '.join(columns)}) SELECT {', '.join(selected)} "
            f"FROM unnest({', '.join(given)}) AS given ({names}) ON CONFLICT DO NOTHING",
            [*params, *arrays],
        )
        return int(cursor.rowcount)
