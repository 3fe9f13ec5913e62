"""Claiming: a worker leases due rows.

``claim`` leases a batch of due rows in one statement: it writes a fresh token into ``lease`` and moves ``wake_at`` to
the end of the lease. ``claim_rows`` leases given rows. The SQL is written by hand, because a claim must be one round
trip wherever the database has UPDATE ... RETURNING.

On PostgreSQL the commit of a claim does not wait for the disk. If a crash of the server loses the claim, the row is as
due as before, and the lost lease permits no write. Progress waits for the disk, and with it the claim, as the log is
written in order.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F

from ..conf import conf
from ..db.durability import not_durable_if
from ..db.inserts import column_of
from ..db.locks import skipping_locked
from ..db.prepared import prepared_cursor
from ..db.selects import columns_of, convert_rows
from ..db.writer import alias_of
from .lanes import Lane, lane_condition, lane_params
from .models import Pause
from .wakeable import SINCE, Wakeable

W = TypeVar("W", bound=Wakeable)


@lru_cache(maxsize=1)
def _process_name(pid: int) -> str:
    return f"{socket.gethostname()[:60]}:{pid}"


def new_token(now: datetime | None = None) -> str:
    """Return a fresh lease token. It names the process and the moment of the claim, so that an operator sees which one
    holds a row, and since when (``Wakeable.leased_at``)."""
    since = "" if now is None else f"{round(now.timestamp() * 1000):x}{SINCE}"
    return f"{_process_name(os.getpid())}:{since}{secrets.token_hex(6)}"


def claim(
    model: type[W],
    now: datetime,
    limit: int,
    since: datetime | None = None,
    queue: str = "",
    priority: int = 0,
    *,
    unless_paused: bool = False,
) -> list[W]:
    """Lease up to ``limit`` due rows of one lane of ``model``, those that have been due longest first, under one fresh
    token.

    ``since``: skip rows with an earlier ``wake_at`` (default: skip none; see ``due``). ``queue`` (as it is stored),
    ``priority``: the lane, by default that of rows without a queue and a priority. A row whose lease ran out gets
    one more loss. A row with losses is claimed alone, so that it cannot harm other rows of a batch. ``unless_paused``:
    claim nothing while anything is paused. Commits immediately. Two workers never get the same row.
    """
    connection = connections[alias_of(model)]
    token, lane = new_token(now), Lane(model, queue, priority)
    if connection.features.can_return_columns_from_insert and connection.vendor in ("postgresql", "sqlite"):
        ops = connection.ops
        condition = not_durable_if(connection)
        sql = _claim_sql(model, connection.vendor, since is not None, lane.is_default, unless_paused, condition)
        moment = ops.adapt_datetimefield_value(now)
        until = ops.adapt_datetimefield_value(now + conf().LEASE)
        start = [] if since is None else [ops.adapt_datetimefield_value(since)]
        params = [*lane_params(lane), moment, *start, limit, token, until]
        return _claimed(model, connection, sql, params)
    if unless_paused and Pause._base_manager.using(connection.alias).exists():
        return []
    return _claim_in_two_statements(model, connection, now, limit, token, since, lane)


def claim_rows(model: type[W], pks: Sequence[int], now: datetime) -> list[W]:
    """Lease those rows of ``pks`` that are due, under one fresh token, and return them in the order of their keys.

    Skips rows that are leased or locked, or that have losses: workers claim these later. Waits for no lock. Commits
    immediately.
    """
    connection = connections[alias_of(model)]
    free = model._base_manager.using(connection.alias).filter(
        pk__in=pks, wake_at__lte=now, lease__isnull=True, losses=0
    )
    token, until = new_token(now), now + conf().LEASE
    if connection.vendor not in ("postgresql", "sqlite") or not connection.features.can_return_columns_from_insert:
        with transaction.atomic(using=connection.alias):
            rows = list(skipping_locked(free).order_by("pk"))
            model._base_manager.using(connection.alias).filter(pk__in=[row.pk for row in rows]).update(
                lease=token, wake_at=until
            )
        for row in rows:
            row.lease, row.wake_at = token, until
        return rows
    adapt = connection.ops.adapt_datetimefield_value
    count = 1 if connection.vendor == "postgresql" else len(pks)
    sql = _claim_rows_sql(model, connection.vendor, count, not_durable_if(connection))
    keys = [list(pks)] if connection.vendor == "postgresql" else pks
    return _claimed(model, connection, sql, [*keys, adapt(now), token, adapt(until)])


def _claimed(model: type[W], connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> list[W]:
    """Execute a claim that returns all columns, and return the rows in the order of their keys."""
    with prepared_cursor(connection) as cursor:
        cursor.execute(sql, params)
        found = cursor.fetchall()
    names, converters = columns_of(model, connection)
    rows = [model.from_db(connection.alias, names, values) for values in convert_rows(found, converters, connection)]
    rows.sort(key=lambda row: row.pk)
    return rows


@lru_cache(maxsize=64)
def _claim_rows_sql(model: type[Wakeable], vendor: str, count: int, condition: str) -> str:
    quote = connections[alias_of(model)].ops.quote_name
    table, pk = quote(model._meta.db_table), quote(column_of(model._meta.pk))
    columns = ", ".join(f"{table}.{quote(column_of(field))}" for field in model._meta.concrete_fields)
    in_keys = "= ANY(%s)" if vendor == "postgresql" else f"IN ({', '.join(['%s'] * count)})"
    locking = "FOR UPDATE SKIP LOCKED" if vendor == "postgresql" else ""
    return f"""
        WITH free AS (
            SELECT {pk} AS id FROM {table}
            WHERE {pk} {in_keys} AND wake_at <= %s AND lease IS NULL AND losses = 0{condition} {locking}
        )
        UPDATE {table} SET lease = %s, wake_at = %s WHERE {pk} IN (SELECT id FROM free) RETURNING {columns}"""


@lru_cache(maxsize=64)
def _claim_sql(
    model: type[Wakeable], vendor: str, has_start: bool, is_default: bool, unless_paused: bool, condition: str
) -> str:
    quote = connections[alias_of(model)].ops.quote_name
    table, pk = quote(model._meta.db_table), quote(column_of(model._meta.pk))
    columns = ", ".join(f"{table}.{quote(column_of(field))}" for field in model._meta.concrete_fields)
    start = "AND wake_at >= %s" if has_start else ""
    lane = lane_condition(model, is_default=is_default)
    if unless_paused:
        lane = f"NOT EXISTS (SELECT 1 FROM {quote(Pause._meta.db_table)}) AND {lane}"
    # SKIP LOCKED: a row that another worker is claiming is not worth waiting for. SQLite has one writer anyway.
    locking = "FOR UPDATE SKIP LOCKED" if vendor == "postgresql" else ""
    return f"""
        WITH due AS (
            SELECT {pk} AS id, wake_at, (lease IS NOT NULL OR losses > 0) AS was_lost
            FROM {table} WHERE {lane}wake_at <= %s {start} ORDER BY wake_at LIMIT %s {locking}
        ), oldest AS (
            SELECT id, was_lost FROM due ORDER BY wake_at, id LIMIT 1
        ), chosen AS (
            SELECT due.id FROM due, oldest
            WHERE (due.id = oldest.id OR (NOT oldest.was_lost AND NOT due.was_lost)){condition}
        )
        UPDATE {table} SET
            losses = losses + CASE WHEN lease IS NULL THEN 0 ELSE 1 END, lease = %s, wake_at = %s
        WHERE {pk} IN (SELECT id FROM chosen)
        RETURNING {columns}"""


def _claim_in_two_statements(
    model: type[W],
    connection: BaseDatabaseWrapper,
    now: datetime,
    limit: int,
    token: str,
    since: datetime | None,
    lane: Lane,
) -> list[W]:
    manager = model._base_manager.using(connection.alias)
    with transaction.atomic(using=connection.alias):
        moments = [connection.ops.adapt_datetimefield_value(each) for each in (now, since) if each is not None]
        sql = _select_due_sql(model, since is not None, lane.is_default)
        due = list(manager.raw(sql, [*lane_params(lane), *moments, limit]))
        if not due:
            return []
        was_lost = [row.lease is not None or row.losses > 0 for row in due]
        ran_out = due[0].lease is not None
        rows = due[:1] if was_lost[0] else [row for row, lost in zip(due, was_lost, strict=True) if not lost]
        until = now + conf().LEASE
        for row in rows:
            row.losses += row.lease is not None
            row.lease, row.wake_at = token, until
        manager.filter(pk__in=[row.pk for row in rows]).update(
            lease=token, wake_at=until, losses=F("losses") + int(ran_out)
        )
        return rows


@lru_cache(maxsize=64)
def _select_due_sql(model: type[Wakeable], has_start: bool, is_default: bool) -> str:
    connection = connections[alias_of(model)]
    quote = connection.ops.quote_name
    columns = ", ".join(quote(column_of(field)) for field in model._meta.concrete_fields)
    # Without the hint MariaDB reads and sorts the table when many rows are due, and locks each row that it reads.
    index = next(quote(each.name) for each in model._meta.indexes if each.name.endswith("_wake"))
    lane = lane_condition(model, is_default=is_default)
    locking = connection.ops.for_update_sql(skip_locked=connection.features.has_select_for_update_skip_locked)
    return (
        f"SELECT {columns} FROM {quote(model._meta.db_table)} FORCE INDEX ({index}) "
        f"WHERE {lane}wake_at <= %s {'AND wake_at >= %s' if has_start else ''} ORDER BY wake_at LIMIT %s {locking}"
    )
