"""Inserts with statements that are compiled once, and inserts that skip rows with a conflict and raise nothing.

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
from .prepared import prepared_cursor
from .writer import alias_of

M = TypeVar("M", bound=models.Model)


def column_of(field: models.Field[Any, Any]) -> str:
    return str(field.column)


@lru_cache(maxsize=512)
def insertable_fields(model: type[models.Model]) -> list[models.Field[Any, Any]]:
    """Return the fields of the columns that an INSERT names: all but the primary key."""
    return [field for field in model._meta.concrete_fields if not field.primary_key]


@lru_cache(maxsize=512)
def field_of(model: type[models.Model], name: str) -> Any:
    return model._meta.get_field(name)


def insert(row: models.Model) -> None:
    """Insert ``row``, which is new, and set its primary key, as ``save(force_insert=True)`` does, in half of its time:
    Django compiles nothing and sends no signals."""
    model = type(row)
    connection = connections[alias_of(model)]
    sql, params = _statement(model, [row], connection, None)
    returning = connection.ops.quote_name(column_of(model._meta.pk))
    # As in a save: a transaction in which this fails cannot be continued.
    with transaction.mark_for_rollback_on_error(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(f"{sql} RETURNING {returning}", params)
        (row.pk,) = cursor.fetchone()
    row._state.adding, row._state.db = False, connection.alias


def insert_selecting(row: models.Model, name: str, source: str, params: Sequence[Any], *, ignoring: bool) -> bool:
    """Insert ``row`` with the value of its column ``name`` that ``SELECT value FROM source`` gives; set this value and
    the primary key on ``row``. Return whether it was inserted: not if ``source`` gives no row or, with ``ignoring``, on
    a conflict. PostgreSQL only. ``params``: those of ``source``."""
    model = type(row)
    connection = connections[alias_of(model)]
    into, values = selected(row, name)
    returning = f"RETURNING {', '.join(map(connection.ops.quote_name, [column_of(model._meta.pk), name]))}"
    conflict = " ON CONFLICT DO NOTHING" if ignoring else ""
    sql = f"{into}, value FROM {source}{conflict} {returning}"
    with transaction.mark_for_rollback_on_error(using=connection.alias), prepared_cursor(connection) as cursor:
        cursor.execute(sql, [*values, *params])
        found = cursor.fetchone()
    if found is None:
        return False
    row.pk, row.__dict__[name] = found
    row._state.adding, row._state.db = False, connection.alias
    return True


def selected(row: models.Model, last: str = "") -> tuple[str, list[Any]]:
    """Return an INSERT of ``row`` on PostgreSQL up to the list of its SELECT, and the parameters.

    The SELECT is to continue with the value of the column ``last``, if one is given, and with FROM.
    """
    model = type(row)
    connection = connections[alias_of(model)]
    into, fields = _around_selected(model, last)
    values: list[Any] = []
    typed = ", ".join([f"{_placeholder(field, row, connection, values)}::{kind}" for field, kind in fields])
    return f"{into} SELECT {typed}", values


@lru_cache(maxsize=512)
def _around_selected(model: type[models.Model], last: str) -> tuple[str, list[tuple[models.Field[Any, Any], str]]]:
    """Return the begin of an INSERT, and its columns with their types, without ``last``, which is the last one."""
    connection = connections[alias_of(model)]
    quote = connection.ops.quote_name
    fields = [field for field in insertable_fields(model) if field.attname != last]
    # Typed, because a SELECT list, unlike VALUES, gives parameters no types.
    typed = [(field, str(field.db_type(connection)).partition("(")[0]) for field in fields]
    names = ", ".join(map(quote, filter(None, [*map(column_of, fields), last])))
    return f"INSERT INTO {quote(model._meta.db_table)} ({names})", typed


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
            sql, params = _statement(model, chunk, connection, OnConflict.IGNORE)
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


def _statement(
    model: type[models.Model],
    rows: Sequence[models.Model],
    connection: BaseDatabaseWrapper,
    on_conflict: OnConflict | None,
) -> tuple[str, Sequence[Any]]:
    """Return the statement that inserts ``rows``, and its parameters. Django compiles it if a value is an expression.

    Each ``save()`` of a model with events and each start of a run inserts rows of some 35 columns, most of which have
    the value with which a row begins. These values stand in the statement: the time of such an insert is that of its
    parameters, which Django prepares and the driver adapts one by one, and of compiling it.
    """
    fields = insertable_fields(model)
    if not _has_plain_placeholders(model) or any(_has_expression(row, fields) for row in rows):
        return _compiled(model, fields, rows, connection, on_conflict)
    params: list[Any] = []
    values = [f"({', '.join([_placeholder(field, row, connection, params) for field in fields])})" for row in rows]
    start, end = _around_values(model, connection.vendor, on_conflict)
    return f"{start}{', '.join(values)}{end}", params


def _compiled(
    model: type[models.Model],
    fields: Sequence[models.Field[Any, Any]],
    rows: Sequence[models.Model],
    connection: BaseDatabaseWrapper,
    on_conflict: OnConflict | None,
) -> tuple[str, Sequence[Any]]:
    query = InsertQuery(model, on_conflict=on_conflict)
    query.insert_values(fields, list(rows))
    ((sql, params),) = query.get_compiler(connection.alias).as_sql()
    return sql, params


@lru_cache(maxsize=512)
def _has_plain_placeholders(model: type[models.Model]) -> bool:
    """Return whether a value of each column is written as a plain ``%s``, and none is set by a save alone."""
    return not any(
        hasattr(field, "get_placeholder")
        or hasattr(field, "get_placeholder_sql")
        or getattr(field, "auto_now", False)
        or getattr(field, "auto_now_add", False)
        for field in insertable_fields(model)
    )


def _has_expression(row: models.Model, fields: Sequence[models.Field[Any, Any]]) -> bool:
    given = row.__dict__
    return any(hasattr(given.get(field.attname), "resolve_expression") for field in fields)


@lru_cache(maxsize=512)
def _around_values(model: type[models.Model], vendor: str, on_conflict: OnConflict | None) -> tuple[str, str]:
    connection = connections[alias_of(model)]
    fields = insertable_fields(model)
    names = ", ".join(connection.ops.quote_name(column_of(field)) for field in fields)
    into = f"{connection.ops.insert_statement(on_conflict)} {connection.ops.quote_name(model._meta.db_table)}"
    suffix = connection.ops.on_conflict_suffix_sql(fields, on_conflict, [], [])
    return f"{into} ({names}) VALUES ", f" {suffix}".rstrip()


_LITERALS: dict[Any, str] = {str: "''", int: "0", bool: "FALSE"}
"""How an empty value of a type is written in a statement."""
_EMPTY_JSON: dict[Any, str] = {dict: "'{}'", list: "'[]'"}


def _placeholder(
    field: models.Field[Any, Any], row: models.Model, connection: BaseDatabaseWrapper, params: list[Any]
) -> str:
    """Return how the value of ``field`` of a new row is written in a statement. A value that is a parameter is added to
    ``params``."""
    value = getattr(row, field.attname)
    if value is None:
        return "NULL"
    if not value and not field.is_relation:
        literals = _EMPTY_JSON if isinstance(field, models.JSONField) else _LITERALS
        if type(value) in literals:
            return literals[type(value)]
    params.append(field.get_db_prep_save(value, connection))
    return "%s"


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
