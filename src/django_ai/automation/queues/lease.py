"""Leases: take due rows, and write to them only while they are still yours.

``claim`` takes a batch of due rows in one statement: it writes a fresh token into ``lease`` and pushes ``wake_at`` to
the lease's end; ``claim_these`` takes given rows, as far as nobody else has them. ``advance`` is the only way to write
progress: it is fenced on (``lease``, ``seq``), raises ``seq``, and where nothing matched it raises ``LeaseLostError``,
so that the whole transaction goes. ``release`` gives a row back untouched. ``disturb`` is for everybody else: it
changes rows from outside and clears their lease in the same write.

The statements are written here by hand because they are the hot path: one round trip for a claim, one for a step's
commit together with its history row, where the database has UPDATE ... RETURNING.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, QuerySet

from ..conf import conf
from ..db.inserts import column_of, field_of, insertable_fields
from ..db.locks import unlocked
from ..db.writer import alias_of
from ..exceptions import LeaseLostError
from ..state.encryption import EncryptedJSONField, encrypt
from .models import ARRIVAL_SQL, Arrival, Wakeable

ENGINE_FAILED = "The engine itself failed on this row"
"""What the error of a row begins with while the engine could not perform it."""

W = TypeVar("W", bound=Wakeable)
M = TypeVar("M", bound=models.Model)


@lru_cache(maxsize=1)
def _process_name(pid: int) -> str:
    return f"{socket.gethostname()[:60]}:{pid}"


def new_token() -> str:
    """Return a fresh lease token. It names its process, so that a person can see who has a row."""
    return f"{_process_name(os.getpid())}:{secrets.token_hex(6)}"


def claim(model: type[W], now: datetime, limit: int, since: datetime | None = None) -> list[W]:
    """Take up to ``limit`` due rows of ``model``, the longest due first, under one fresh lease.

    ``since``: pass by what was due before (default: nothing; see ``lookout``). A row whose lease ran out gets one more
    loss. A row with losses is taken alone, so that its neighbours do not pay for it. Commits at once; two workers never
    get the same row.
    """
    connection = connections[alias_of(model)]
    token = new_token()
    if connection.features.can_return_columns_from_insert and connection.vendor in ("postgresql", "sqlite"):
        ops = connection.ops
        sql = _claim_sql(model, connection.vendor, since is not None)
        moment = ops.adapt_datetimefield_value(now)
        until = ops.adapt_datetimefield_value(now + conf().LEASE)
        begin = [] if since is None else [ops.adapt_datetimefield_value(since)]
        rows = list(model._base_manager.using(connection.alias).raw(sql, [moment, *begin, limit, token, until]))
        rows.sort(key=lambda row: row.pk)
        return rows
    return _claim_in_two(model, connection, now, limit, token, since)


def claim_these(model: type[W], pks: Sequence[int], now: datetime) -> list[W]:
    """Take those rows of ``pks`` that are due, under one fresh lease, and return them in the order of their keys.

    What somebody has leased or locked, or has lost before, is left to the workers: nothing is waited for. Commits at
    once.
    """
    connection = connections[alias_of(model)]
    free = model._base_manager.using(connection.alias).filter(
        pk__in=pks, wake_at__lte=now, lease__isnull=True, losses=0
    )
    token, until = new_token(), now + conf().LEASE
    if connection.vendor not in ("postgresql", "sqlite") or not connection.features.can_return_columns_from_insert:
        with transaction.atomic(using=connection.alias):
            rows = list(unlocked(free).order_by("pk"))
            model._base_manager.using(connection.alias).filter(pk__in=[row.pk for row in rows]).update(
                lease=token, wake_at=until
            )
        for row in rows:
            row.lease, row.wake_at = token, until
        return rows
    adapt = connection.ops.adapt_datetimefield_value
    sql = _claim_these_sql(model, connection.vendor, 1 if connection.vendor == "postgresql" else len(pks))
    wanted = [list(pks)] if connection.vendor == "postgresql" else pks
    found = model._base_manager.using(connection.alias).raw(sql, [*wanted, adapt(now), token, adapt(until)])
    return sorted(found, key=lambda row: row.pk)


@lru_cache(maxsize=64)
def _claim_these_sql(model: type[Wakeable], vendor: str, count: int) -> str:
    quote = connections[alias_of(model)].ops.quote_name
    table, pk = quote(model._meta.db_table), quote(column_of(model._meta.pk))
    columns = ", ".join(f"{table}.{quote(column_of(field))}" for field in model._meta.concrete_fields)
    among = "= ANY(%s)" if vendor == "postgresql" else f"IN ({', '.join(['%s'] * count)})"
    locking = "FOR UPDATE SKIP LOCKED" if vendor == "postgresql" else ""
    return f"""
        WITH free AS (
            SELECT {pk} AS id FROM {table}
            WHERE {pk} {among} AND wake_at <= %s AND lease IS NULL AND losses = 0 {locking}
        )
        UPDATE {table} SET lease = %s, wake_at = %s WHERE {pk} IN (SELECT id FROM free) RETURNING {columns}"""


@lru_cache(maxsize=64)
def _claim_sql(model: type[Wakeable], vendor: str, has_beginning: bool) -> str:
    quote = connections[alias_of(model)].ops.quote_name
    table, pk = quote(model._meta.db_table), quote(column_of(model._meta.pk))
    columns = ", ".join(f"{table}.{quote(column_of(field))}" for field in model._meta.concrete_fields)
    beginning = "AND wake_at >= %s" if has_beginning else ""
    # SKIP LOCKED: a row that another worker is just taking is not worth waiting for. SQLite has one writer anyway.
    locking = "FOR UPDATE SKIP LOCKED" if vendor == "postgresql" else ""
    return f"""
        WITH due AS (
            SELECT {pk} AS id, wake_at, (lease IS NOT NULL OR losses > 0) AS troubled
            FROM {table} WHERE wake_at <= %s {beginning} ORDER BY wake_at LIMIT %s {locking}
        ), eldest AS (
            SELECT id, troubled FROM due ORDER BY wake_at, id LIMIT 1
        ), chosen AS (
            SELECT due.id FROM due, eldest
            WHERE due.id = eldest.id OR (NOT eldest.troubled AND NOT due.troubled)
        )
        UPDATE {table} SET
            losses = losses + CASE WHEN lease IS NULL THEN 0 ELSE 1 END, lease = %s, wake_at = %s
        WHERE {pk} IN (SELECT id FROM chosen)
        RETURNING {columns}"""


def _claim_in_two(
    model: type[W], connection: BaseDatabaseWrapper, now: datetime, limit: int, token: str, since: datetime | None
) -> list[W]:
    manager = model._base_manager.using(connection.alias)
    with transaction.atomic(using=connection.alias):
        moments = [connection.ops.adapt_datetimefield_value(each) for each in (now, since) if each is not None]
        due = list(manager.raw(_due_sql(model, since is not None), [*moments, limit]))
        if not due:
            return []
        troubled = [row.lease is not None or row.losses > 0 for row in due]
        lost = due[0].lease is not None
        rows = due[:1] if troubled[0] else [row for row, bad in zip(due, troubled, strict=True) if not bad]
        until = now + conf().LEASE
        for row in rows:
            row.losses += row.lease is not None
            row.lease, row.wake_at = token, until
        manager.filter(pk__in=[row.pk for row in rows]).update(
            lease=token, wake_at=until, losses=F("losses") + int(lost)
        )
        return rows


@lru_cache(maxsize=64)
def _due_sql(model: type[Wakeable], has_beginning: bool) -> str:
    connection = connections[alias_of(model)]
    quote = connection.ops.quote_name
    columns = ", ".join(quote(column_of(field)) for field in model._meta.concrete_fields)
    # Without the hint MariaDB reads and sorts the table where many rows are due, and all that it reads is locked.
    index = next(quote(each.name) for each in model._meta.indexes if each.fields == ["wake_at"])
    locking = connection.ops.for_update_sql(skip_locked=connection.features.has_select_for_update_skip_locked)
    return (
        f"SELECT {columns} FROM {quote(model._meta.db_table)} FORCE INDEX ({index}) "
        f"WHERE wake_at <= %s {'AND wake_at >= %s' if has_beginning else ''} ORDER BY wake_at LIMIT %s {locking}"
    )


def advance(
    row: Wakeable, changes: Mapping[str, Any], records: Sequence[models.Model] = (), arrives: tuple[str, ...] = ()
) -> None:
    """Write ``changes`` to a row that this worker has, and ``records`` (new rows of history, of waits) with them.

    Fenced on (``lease``, ``seq``); raises ``seq`` and sets ``losses`` to zero. A text given for a JSON field is taken
    as encoded. Raises ``LeaseLostError`` when the lease was lost; then nothing is written. On PostgreSQL all writes
    are one statement; elsewhere the caller holds the transaction.

    ``arrives``: columns that take a new position (see ``positions``), on PostgreSQL only, and without ``records``.
    """
    connection = connections[alias_of(type(row))]
    changes = _progress(row, changes)
    names = tuple(changes)
    params = _values(type(row), changes, connection)
    fence = [row.seq + 1, row.pk, row.lease, row.seq]
    with connection.cursor() as cursor:
        if records and connection.vendor == "postgresql":
            for record in records:
                values = {field.attname: getattr(record, field.attname) for field in insertable_fields(type(record))}
                fence += _values(type(record), values, connection)
            cursor.execute(_advance_sql(type(row), names, tuple(map(type, records))), [*params, *fence])
            kept = cursor.rowcount
        else:
            cursor.execute(_advance_sql(type(row), names, (), arrives), [*params, *fence])
            kept = cursor.rowcount
            if kept and arrives:
                (position,) = cursor.fetchone()
                row.__dict__.update(dict.fromkeys(arrives, position))
            if kept:
                for record in records:
                    record.save(force_insert=True, using=connection.alias)
    if kept != 1:
        raise LeaseLostError(f"{row._meta.label} {row.pk} was taken over or changed while this worker had it.")
    _adopt(row, changes)


def advance_together(rows: Sequence[tuple[Wakeable, Mapping[str, Any]]]) -> set[Any]:
    """Write changes to rows of one model, each fenced as ``advance`` does it; return the primary keys of those whose
    lease was still this worker's. The others are left out.

    On PostgreSQL this is one statement for all that change the same columns; elsewhere one for each.
    """
    if len(rows) == 1 or connections[alias_of(type(rows[0][0]))].vendor != "postgresql":
        kept = set()
        for row, changes in rows:
            with contextlib.suppress(LeaseLostError):
                advance(row, changes)
                kept.add(row.pk)
        return kept
    alike: dict[tuple[str, ...], list[tuple[Wakeable, dict[str, Any]]]] = {}
    for row, changes in rows:
        progress = _progress(row, changes)
        alike.setdefault(tuple(progress), []).append((row, progress))
    return {pk for names, group in alike.items() for pk in _advance_alike(names, group)}


def _advance_alike(names: tuple[str, ...], rows: Sequence[tuple[Wakeable, dict[str, Any]]]) -> set[Any]:
    model = type(rows[0][0])
    connection = connections[alias_of(model)]
    quote = connection.ops.quote_name
    fields = [field_of(model, name) for name in ("id", "lease", "seq", *names)]
    lists, sets = [], ["seq = kept.seq + 1"]
    for number, field in enumerate(fields):
        kind = str(field.db_type(connection)).split("(")[0]
        is_json = isinstance(field, models.JSONField)
        lists.append(f"%s::{'text' if is_json else kind}[]")
        if number > 2:
            sets.append(f"{quote(field.column)} = given.v{number}{'::jsonb' if is_json else ''}")
    given = [[row.pk, row.lease, row.seq, *map(_bare, _values(model, changes, connection))] for row, changes in rows]
    with connection.cursor() as cursor:
        # A list for each column: the driver reads a statement with a parameter for each value for longer than it takes.
        cursor.execute(
            f"UPDATE {quote(model._meta.db_table)} AS kept SET {', '.join(sets)} "
            f"FROM unnest({', '.join(lists)}) AS given ({', '.join(f'v{number}' for number in range(len(fields)))}) "
            f"WHERE kept.id = given.v0 AND kept.lease = given.v1 AND kept.seq = given.v2 RETURNING kept.id",
            list(map(list, zip(*given, strict=True))),
        )
        found = {pk for (pk,) in cursor.fetchall()}
    for row, changes in rows:
        if row.pk in found:
            _adopt(row, changes)
    return found


def _bare(value: Any) -> Any:
    """Return the text of a JSON value that Django has made ready for the driver."""
    return (value.dumps or json.dumps)(value.obj) if hasattr(value, "obj") else value


def _progress(row: Wakeable, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that is written with ``changes``."""
    forgotten = {"error": ""} if str(getattr(row, "error", "")).startswith(ENGINE_FAILED) else {}
    return {"losses": 0, **forgotten, **changes}


def _adopt(row: Wakeable, changes: Mapping[str, Any]) -> None:
    """Let ``row`` be as it was just written."""
    row.seq += 1
    for name, value in changes.items():
        encoded = isinstance(value, str) and isinstance(field_of(type(row), name), models.JSONField)
        setattr(row, name, json.loads(value) if encoded else value)


def _values(model: type[models.Model], values: Mapping[str, Any], connection: BaseDatabaseWrapper) -> list[Any]:
    """Return ``values`` as the database wants them. Encoded JSON passes as it is."""
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
    arrives: tuple[str, ...] = (),
) -> str:
    connection = connections[alias_of(model)]
    quote = connection.ops.quote_name

    def slot(field: Any) -> str:
        return "%s::jsonb" if isinstance(field, models.JSONField) and connection.vendor == "postgresql" else "%s"

    fields = [field_of(model, name) for name in names]
    table, pk = quote(model._meta.db_table), quote(column_of(model._meta.pk))
    sets = ", ".join(
        [f"{quote(field.column)} = {slot(field)}" for field in fields]
        + [f"{quote(field_of(model, name).column)} = (SELECT id FROM arrived)" for name in arrives]
    )
    update = f"UPDATE {table} SET {sets}, seq = %s WHERE {pk} = %s AND lease = %s AND seq = %s"
    if arrives:
        return (
            f"WITH arrived AS (INSERT INTO {quote(Arrival._meta.db_table)} (at) "
            f"VALUES ({ARRIVAL_SQL['postgresql']}) RETURNING id) "
            f"{update} RETURNING {quote(field_of(model, arrives[0]).column)}"
        )
    if not records:
        return update
    inserts = [_insert_sql(record, connection) for record in records]
    more = "".join(f", record{number} AS ({sql})" for number, sql in enumerate(inserts[:-1]))
    return f"WITH kept AS ({update} RETURNING 1){more} {inserts[-1]}"


def _insert_sql(record: type[models.Model], connection: BaseDatabaseWrapper) -> str:
    quote = connection.ops.quote_name
    columns = insertable_fields(record)
    names_of = ", ".join(quote(column_of(field)) for field in columns)
    # Typed, because a SELECT list, unlike VALUES, gives parameters no types.
    slots = ", ".join(f"%s::{field.db_type(connection).split('(')[0]}" for field in columns)  # type: ignore[union-attr]
    return f"INSERT INTO {quote(record._meta.db_table)} ({names_of}) SELECT {slots} FROM kept"


def release(row: Wakeable, wake_at: datetime, **changes: Any) -> bool:
    """Give a row back, due at ``wake_at``, with nothing of this worker's work. Say whether it was still this worker's.

    Fenced on (``lease``, ``seq``), so a release after a commit whose answer was lost changes nothing.
    """
    model = type(row)
    return bool(
        model._base_manager.using(alias_of(model))
        .filter(pk=row.pk, lease=row.lease, seq=row.seq)
        .update(lease=None, wake_at=wake_at, **changes)
    )


def give_up(row: Wakeable, wake_at: datetime, *, wait: bool) -> bool:
    """Give a row back as ``release`` does. Return whether that was done, or there was nothing to give back.

    ``wait``: for who has locked it; without it, False is returned then.
    """
    if wait:
        release(row, wake_at)
        return True
    model = type(row)
    mine = model._base_manager.using(alias_of(model)).filter(pk=row.pk)
    with transaction.atomic(using=mine.db):
        if unlocked(mine).values_list("pk").first() is None:
            return False
        release(row, wake_at)
        return True


def revoke(rows: QuerySet[M], **changes: Any) -> int:
    """Change rows from outside: write ``changes``, clear every lease and raise ``seq``, in one statement.

    A worker that has one of the rows finds its fenced write refused, and nothing of its work is kept.
    """
    return rows.update(**{"lease": None, "losses": 0, "seq": F("seq") + 1, **changes})


def renew(rows: Sequence[Wakeable], lease: str, now: datetime) -> None:
    """Push the end of ``lease`` on rows in hand, of one kind. Fenced on the token; ``seq`` stays, so the worker notices
    nothing.

    The token is given, not read from the rows: their worker may let go of them at this moment. A row that somebody has
    locked is passed by until the next beat: that may be the step in hand itself, or one who waits for other rows.
    """
    model = type(rows[0])
    mine = model._base_manager.using(alias_of(model)).filter(pk__in=[row.pk for row in rows], lease=lease)
    if not connections[mine.db].features.has_select_for_update:
        mine.update(wake_at=now + conf().LEASE)
        return
    with transaction.atomic(using=mine.db):
        mine.filter(pk__in=list(unlocked(mine).values_list("pk", flat=True))).update(wake_at=now + conf().LEASE)
