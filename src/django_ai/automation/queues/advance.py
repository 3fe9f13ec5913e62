"""Advancing: a worker writes the progress of a row that it has leased.

``advance`` is the only way to write progress. It is fenced on (``lease``, ``seq``) and raises ``seq``. When no row
matches, it raises ``LeaseLostError``, so that the whole transaction is rolled back. The SQL is written by hand, because
a step's commit must be one round trip together with its history row wherever the database can do that.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper

from ..db.database_clock import DATABASE_NOW_SQL
from ..db.inserts import column_of, field_of, insertable_fields, selected
from ..db.prepared import prepared_cursor
from ..db.writer import alias_of
from ..exceptions import LeaseLostError
from ..state.encryption import EncryptedJSONField, encrypt
from .models import Arrival
from .positions import statement_bound
from .wakeable import Wakeable

ENGINE_FAILED = "The engine itself failed on this row"
"""The beginning of a row's ``error`` while the engine cannot perform the row."""


def advance(
    row: Wakeable,
    changes: Mapping[str, Any],
    records: Sequence[models.Model] = (),
    position_columns: tuple[str, ...] = (),
) -> None:
    """Write ``changes`` to a row that this worker has leased, and insert ``records`` (new rows of history, of waits).

    Fenced on (``lease``, ``seq``). Raises ``seq`` and sets ``losses`` to zero. A string for a JSON field counts as
    encoded JSON. Raises ``LeaseLostError`` when the lease was lost; then nothing is written. On PostgreSQL all writes
    are one statement; elsewhere the caller opens the transaction.

    ``position_columns``: columns that get a new position (see ``positions``); only on PostgreSQL, without ``records``.
    """
    connection = connections[alias_of(type(row))]
    changes = _all_changes(row, changes)
    names = tuple(changes)
    params = _prepared_values(type(row), changes, connection)
    fence = [row.seq + 1, row.pk, row.lease, row.seq]
    with prepared_cursor(connection) as cursor:
        if records and connection.vendor == "postgresql":
            for record in records:
                fence += _record_values(record, connection)
            cursor.execute(_advance_sql(type(row), names, tuple(map(type, records))), [*params, *fence])
            kept = cursor.rowcount
        else:
            cursor.execute(_advance_sql(type(row), names, (), position_columns), [*params, *fence])
            kept = cursor.rowcount
            if kept and position_columns:
                (position,) = cursor.fetchone()
                row.__dict__.update(dict.fromkeys(position_columns, position))
            if kept:
                for record in records:
                    record.save(force_insert=True, using=connection.alias)
    if kept != 1:
        raise LeaseLostError(f"{row._meta.label} {row.pk} was claimed or changed by another process meanwhile.")
    _update_in_memory(row, changes)


@dataclass(frozen=True, slots=True)
class Started:
    """A new row that the progress of another starts. ``is_bounded``: its ``position`` is to be a ``lower_bound()``."""

    row: Wakeable
    is_bounded: bool = False


def advance_and_start(
    row: Wakeable, changes: Mapping[str, Any], position_columns: tuple[str, ...], started: Started
) -> bool | None:
    """Write ``changes`` as ``advance`` does, and insert what they start, in one statement. Return whether it was
    inserted: not if its unique key is taken. Only on PostgreSQL.

    Returns None if nothing was written: the lease was lost, or the statement cannot find the bound. Then ``advance``
    tells which. ``position_columns``: as in ``advance``, one at least.
    """
    connection = connections[alias_of(type(row))]
    bound = statement_bound(connection) if started.is_bounded else None
    if started.is_bounded and bound is None:
        return None
    changes = _all_changes(row, changes)
    params: list[Any] = [] if bound is None else [*bound.params()]
    params += [*_prepared_values(type(row), changes, connection), row.seq + 1, row.pk, row.lease, row.seq]
    insert, values = selected(started.row, "position" if started.is_bounded else "")
    sql = _starting_sql(type(row), tuple(changes), position_columns, insert, "" if bound is None else bound.sql)
    with prepared_cursor(connection) as cursor:
        cursor.execute(sql, [*params, *values])
        found = cursor.fetchone()
    if found is None:
        return None
    position, count, end = found
    if bound is not None:
        bound.remember(end)
    _update_in_memory(row, changes)
    row.__dict__.update(dict.fromkeys(position_columns, position))
    return bool(count)


def advance_many(rows: Sequence[tuple[Wakeable, Mapping[str, Any]]]) -> set[Any]:
    """Write changes to rows of one model, each fenced like ``advance``. Return the primary keys of the rows that were
    written; the lease of the others was lost.

    On PostgreSQL rows that change the same columns share one statement; elsewhere each row has its own.
    """
    if len(rows) == 1 or connections[alias_of(type(rows[0][0]))].vendor != "postgresql":
        kept = set()
        for row, changes in rows:
            with contextlib.suppress(LeaseLostError):
                advance(row, changes)
                kept.add(row.pk)
        return kept
    return _advance_together([(row, changes, None) for row, changes in rows])


WithRecord = tuple[Wakeable, Mapping[str, Any], models.Model | None]
"""A row, its changes, and perhaps a row of its history."""


def advance_unlocked(rows: Sequence[WithRecord]) -> set[Any]:
    """Write changes to rows like ``advance_many``, each with a row of its history or None, but skip rows that others
    have locked. PostgreSQL only.

    It waits for no lock while it holds others, so it is in no deadlock, and needs no transaction.
    """
    return _advance_together(rows, skips_locked=True)


def _advance_together(rows: Sequence[WithRecord], *, skips_locked: bool = False) -> set[Any]:
    groups: dict[Any, list[tuple[Wakeable, dict[str, Any], models.Model | None]]] = {}
    for row, changes, record in rows:
        progress = _all_changes(row, changes)
        kind = None if record is None else type(record)
        groups.setdefault((tuple(progress), kind), []).append((row, progress, record))
    return {
        pk for (names, kind), group in groups.items() for pk in _advance_same_columns(names, kind, group, skips_locked)
    }


def _advance_same_columns(
    names: tuple[str, ...],
    record_model: type[models.Model] | None,
    rows: Sequence[tuple[Wakeable, dict[str, Any], models.Model | None]],
    skips_locked: bool,
) -> set[Any]:
    model = type(rows[0][0])
    connection = connections[alias_of(model)]
    given = [
        [
            row.pk,
            row.lease,
            row.seq,
            *map(_json_text, _prepared_values(model, changes, connection)),
            *map(_json_text, _record_values(record, connection)),
        ]
        for row, changes, record in rows
    ]
    columns = list(map(list, zip(*given, strict=True)))
    # One array per column: with one parameter per value, the driver would parse longer than the database works. What is
    # the same in all rows is one value.
    shared = tuple(number > 0 and column.count(column[0]) == len(column) for number, column in enumerate(columns))
    sql = _advance_together_sql(model, names, record_model, shared, skips_locked)
    params = [column[0] if is_shared else column for column, is_shared in zip(columns, shared, strict=True)]
    if skips_locked:
        params = [columns[0], *params]
    with prepared_cursor(connection) as cursor:
        cursor.execute(sql, params)
        found = {pk for (pk,) in cursor.fetchall()}
    for row, changes, _ in rows:
        if row.pk in found:
            _update_in_memory(row, changes)
    return found


def _record_values(record: models.Model | None, connection: BaseDatabaseWrapper) -> list[Any]:
    if record is None:
        return []
    values = {field.attname: getattr(record, field.attname) for field in insertable_fields(type(record))}
    return _prepared_values(type(record), values, connection)


@lru_cache(maxsize=256)
def _advance_together_sql(
    model: type[Wakeable],
    names: tuple[str, ...],
    record_model: type[models.Model] | None,
    shared: tuple[bool, ...],
    skips_locked: bool,
) -> str:
    """Return an UPDATE whose parameters are keys, leases, ``seq``, values of the columns ``names``, and those of the
    records to insert: each an array with one value for each row or, where it is ``shared``, one value for all."""
    connection = connections[alias_of(model)]
    quote = connection.ops.quote_name
    table = quote(model._meta.db_table)
    fields = [field_of(model, name) for name in ("id", "lease", "seq", *names)]
    of_records = [] if record_model is None else insertable_fields(record_model)
    given, values = [], []
    for number, (field, is_shared) in enumerate(zip((*fields, *of_records), shared, strict=True)):
        is_json = isinstance(field, models.JSONField)
        kind = "text" if is_json else str(field.db_type(connection)).split("(")[0]
        given.append(f"%s::{kind} AS v{number}" if is_shared else f"unnest(%s::{kind}[]) AS v{number}")
        values.append(f"given.v{number}{'::jsonb' if is_json else ''}")
    sets = [f"{quote(field.column)} = {value}" for field, value in zip(fields[3:], values[3:], strict=False)]
    free = condition = ""
    if skips_locked:
        free = f"free AS (SELECT id FROM {table} WHERE id = ANY(%s) FOR UPDATE SKIP LOCKED), "
        condition = " AND kept.id IN (SELECT id FROM free)"
    made = ""
    if record_model is not None:
        columns = ", ".join(quote(column_of(field)) for field in of_records)
        made = (
            f", made AS (INSERT INTO {quote(record_model._meta.db_table)} ({columns}) "
            f"SELECT {', '.join(values[len(fields) :])} FROM given JOIN kept ON kept.id = given.v0)"
        )
    return (
        f"WITH {free}given AS (SELECT {', '.join(given)}), "
        f"kept AS (UPDATE {table} AS kept SET {', '.join(['seq = kept.seq + 1', *sets])} FROM given "
        f"WHERE kept.id = given.v0 AND kept.lease = given.v1 AND kept.seq = given.v2{condition} RETURNING kept.id)"
        f"{made} SELECT id FROM kept"
    )


def _json_text(value: Any) -> Any:
    """Return the JSON text of a value that Django has adapted for the driver."""
    return (value.dumps or json.dumps)(value.obj) if hasattr(value, "obj") else value


def _all_changes(row: Wakeable, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``changes`` with the columns that progress resets."""
    cleared = {"error": ""} if str(getattr(row, "error", "")).startswith(ENGINE_FAILED) else {}
    return {"losses": 0, **cleared, **changes}


def _update_in_memory(row: Wakeable, changes: Mapping[str, Any]) -> None:
    """Set on ``row`` what was just written."""
    row.seq += 1
    for name, value in changes.items():
        encoded = isinstance(value, str) and isinstance(field_of(type(row), name), models.JSONField)
        setattr(row, name, json.loads(value) if encoded else value)


def _prepared_values(
    model: type[models.Model], values: Mapping[str, Any], connection: BaseDatabaseWrapper
) -> list[Any]:
    """Return ``values`` as query parameters. Encoded JSON stays as it is."""
    found = []
    for name, value in values.items():
        field = field_of(model, name)
        if isinstance(field, models.JSONField) and isinstance(value, str):
            found.append(encrypt(value) if isinstance(field, EncryptedJSONField) else value)
        else:
            found.append(field.get_db_prep_save(value, connection))
    return found


@lru_cache(maxsize=256)
def _advance_sql(
    model: type[Wakeable],
    names: tuple[str, ...],
    records: tuple[type[models.Model], ...] = (),
    position_columns: tuple[str, ...] = (),
) -> str:
    connection = connections[alias_of(model)]
    quote = connection.ops.quote_name

    def placeholder(field: Any) -> str:
        return "%s::jsonb" if isinstance(field, models.JSONField) and connection.vendor == "postgresql" else "%s"

    fields = [field_of(model, name) for name in names]
    table, pk = quote(model._meta.db_table), quote(column_of(model._meta.pk))
    sets = ", ".join(
        [f"{quote(field.column)} = {placeholder(field)}" for field in fields]
        + [f"{quote(field_of(model, name).column)} = (SELECT id FROM arrived)" for name in position_columns]
    )
    update = f"UPDATE {table} SET {sets}, seq = %s WHERE {pk} = %s AND lease = %s AND seq = %s"
    if position_columns:
        position = quote(column_of(field_of(model, position_columns[0])))
        return f"WITH {_arrived_sql(connection)} {update} RETURNING {position}"
    if not records:
        return update
    inserts = [_insert_sql(record, connection) for record in records]
    more = "".join(f", record{number} AS ({sql})" for number, sql in enumerate(inserts[:-1]))
    return f"WITH kept AS ({update} RETURNING 1){more} {inserts[-1]}"


def _arrived_sql(connection: BaseDatabaseWrapper) -> str:
    """Return the part of a statement on PostgreSQL that allocates a position."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    return f"arrived AS (INSERT INTO {table} (at) VALUES ({DATABASE_NOW_SQL['postgresql']}) RETURNING id)"


@lru_cache(maxsize=256)
def _starting_sql(
    model: type[Wakeable], names: tuple[str, ...], position_columns: tuple[str, ...], insert: str, bound: str
) -> str:
    """Return the statement that advances a row, and executes ``insert`` if it did. It returns the position, the number
    of rows that were inserted, and the bound. ``bound``: the relation of a ``StatementBound``."""
    connection = connections[alias_of(model)]
    arrived = _arrived_sql(connection)
    advanced = _advance_sql(model, names, (), position_columns).removeprefix(f"WITH {arrived} ")
    update, _, position = advanced.rpartition(" RETURNING ")
    if not bound:
        return (
            f"WITH {arrived}, kept AS ({advanced}), made AS ({insert} FROM kept ON CONFLICT DO NOTHING RETURNING 1) "
            f"SELECT kept.{position}, (SELECT count(*) FROM made), NULL FROM kept"
        )
    return (
        f"WITH prefix AS (SELECT value FROM {bound}), {arrived}, "
        f"kept AS ({update} AND EXISTS (SELECT 1 FROM prefix) RETURNING {position}), "
        # What this statement writes is not visible to it, and its position is above all that are.
        f"made AS ({insert}, prefix.value FROM kept, prefix ON CONFLICT DO NOTHING RETURNING 1) "
        f"SELECT kept.{position}, (SELECT count(*) FROM made), prefix.value FROM kept, prefix"
    )


def _insert_sql(record: type[models.Model], connection: BaseDatabaseWrapper) -> str:
    quote = connection.ops.quote_name
    columns = insertable_fields(record)
    names = ", ".join(quote(column_of(field)) for field in columns)
    # Typed, because a SELECT list, unlike VALUES, gives parameters no types.
    placeholders = ", ".join(f"%s::{field.db_type(connection).split('(')[0]}" for field in columns)  # type: ignore[union-attr]
    return f"INSERT INTO {quote(record._meta.db_table)} ({names}) SELECT {placeholders} FROM kept"
