"""The rows of the outbox: take those of some entities out, and know which the open transaction has written itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ....queues.signals import row_parked
from ....values.json_text import storable
from ...capture import Model, tables_by_label
from ...models import CapturedWrite, CapturedWriteStatus
from .stored_text import value_of
from .transactions import own_sql, writes_of

COLUMNS = ("id", "entity_id", "model", "operation", "transaction", "old", "caused_by", "depth", "written_at")
IDS_PER_STATEMENT = 200


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows that were taken out of the outbox, in the order of the writes. ``own``: the keys of those that the open
    transaction has written itself."""

    rows: Sequence[CapturedWrite]
    own: Collection[int]

    @property
    def foreign(self) -> list[CapturedWrite]:
        return [row for row in self.rows if row.pk not in self.own]


def take(root: Model, ids: Sequence[str], alias: str, *, only_written: bool = False) -> Taken:
    """Delete the outbox rows of the entities ``ids`` below ``root``, and return them.

    The caller has written to the rows of these entities, or has locked them: no other transaction adds any. The rows
    come back if the transaction is rolled back. Parked ones stay until an operator resumes them. ``only_written``: the
    caller has not locked them, so only those entities count for which the open transaction has written rows itself.
    """
    connection = connections[alias]
    is_own = own_sql(connection)
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(ids), IDS_PER_STATEMENT):
        some = ids[start : start + IDS_PER_STATEMENT]
        if only_written:
            some = _written(connection, root, some, is_own)
        if some:
            found += _delete(connection, root, some, is_own)
    writes = writes_of(connection)
    if writes is not None:
        writes.seen = max([writes.seen, *(each[0] for each in found if each[-1])])
    rows = sorted((_row(root, each, connection) for each in found), key=lambda row: row.pk)
    return Taken(rows, {each[0] for each in found if each[-1]})


def _written(connection: BaseDatabaseWrapper, root: Model, ids: Sequence[str], is_own: str) -> list[str]:
    """Return those of the entities ``ids`` for which the open transaction has written rows itself."""
    table, (where, params) = connection.ops.quote_name(CapturedWrite._meta.db_table), _where(root, ids)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT DISTINCT entity_id FROM {table} WHERE {where} AND {is_own}", params)
        return [entity_id for (entity_id,) in cursor.fetchall()]


def _delete(connection: BaseDatabaseWrapper, root: Model, ids: Sequence[str], is_own: str) -> list[tuple[Any, ...]]:
    table, (where, params) = connection.ops.quote_name(CapturedWrite._meta.db_table), _where(root, ids)
    columns = ", ".join(connection.ops.quote_name(each) for each in COLUMNS)
    with connection.cursor() as cursor:
        if connection.features.can_return_columns_from_insert:
            cursor.execute(f"DELETE FROM {table} WHERE {where} RETURNING {columns}, {is_own}", params)
            return list(cursor.fetchall())
        cursor.execute(f"SELECT {columns}, {is_own} FROM {table} WHERE {where}", params)
        found = list(cursor.fetchall())
        if found:
            cursor.execute(f"DELETE FROM {table} WHERE {where}", params)
        return found


def _where(root: Model, ids: Sequence[str]) -> tuple[str, list[str]]:
    """Return the SQL of the condition for the rows that can be taken, and its parameters."""
    tables = tables_by_label(root)
    sql = (
        f"entity_id IN ({_places(ids)}) AND entity_type = %s AND model IN ({_places(tables)}) "
        f"AND NOT (status = 'parked' AND wake_at IS NULL)"
    )
    return sql, [*ids, root._meta.label_lower, *tables]


def _places(values: Collection[Any]) -> str:
    return ", ".join(["%s"] * len(values))


def _row(root: Model, values: tuple[Any, ...], connection: BaseDatabaseWrapper) -> CapturedWrite:
    pk, entity_id, model, operation, transaction, old, caused_by, depth, written_at, _ = values
    return CapturedWrite(
        pk=pk,
        entity_type=root._meta.label_lower,
        entity_id=entity_id,
        model=model,
        operation=operation,
        transaction=transaction,
        old=json.loads(old) if isinstance(old, str) else old,
        caused_by=caused_by,
        depth=depth,
        written_at=value_of(CapturedWrite._meta.get_field("written_at"), str(written_at), connection),
    )


def put_back(rows: Sequence[CapturedWrite], reason: str, now: datetime, alias: str) -> None:
    """Park rows that were taken out, because they could not be recorded."""
    for row in rows:
        row.status, row.error, row.parked_at, row.wake_at = CapturedWriteStatus.PARKED, storable(reason), now, None
    CapturedWrite.objects.using(alias).bulk_create(rows)
    for row in rows:
        row_parked.send_robust(CapturedWrite, row=row, reason=reason)


def own_entities_after(key: int, connection: BaseDatabaseWrapper) -> tuple[set[tuple[str, str]], int]:
    """Return the entities (root label and key) of the rows after ``key`` that the open transaction has written itself,
    and the highest key of such a row."""
    table = connection.ops.quote_name(CapturedWrite._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id, entity_type, entity_id FROM {table} WHERE id > %s AND {own_sql(connection)}", [key])
        found = cursor.fetchall()
    return {(label, entity_id) for _, label, entity_id in found}, max([key, *(pk for pk, _, _ in found)])
