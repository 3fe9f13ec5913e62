"""Positions: one order for all that arrives (occurrences of events, deliveries of signals), which no clock decides.

Each arrival takes the next key of the table ``Arrival`` in the short transaction that makes it true (``allot``, or
``lease.advance`` itself on PostgreSQL). Who begins to listen keeps a *lower bound*: a position such that everything at
or below it was committed and visible by then (``lower_bound``). What comes after that is news to it, however late a
worker gets to it and whatever the clocks of the machines say; what it has consumed already its own ledger knows.

Keys are handed out in another order than transactions commit, so the highest visible key is no such bound: a lower one
may commit later. A bound is the end of the prefix of keys that is complete; it stops before the first key that is
missing, because that may belong to a transaction in flight. A missing key whose transaction was rolled back never
comes, and is passed over as soon as it is known:

* SQLite has one writer: nothing is in flight beside the reader, and the highest key is exact;
* PostgreSQL: the owner of a key has locked the table for writing before it has the key, and until it ends. A key that
  is still missing when none of those is left who held that lock at the first look was rolled back. A transaction that
  began after the next key had arrived owns none below it;
* MariaDB: the owner holds a lock on the row from the statement on that makes the key (``INSERT ... SELECT`` keeps other
  keys from being made meanwhile), and NOWAIT tells it from a row that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from typing import Any
from weakref import WeakKeyDictionary

from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..conf import conf
from .lease import alias_of
from .maintenance import Bite, Turn
from .models import ARRIVAL_SQL, Arrival

SETTLED_SECONDS = 60
"""A process that is new here begins behind the last arrival that is as old as this."""
CLOCK_STEP_SECONDS = 10
"""By so much the clock of PostgreSQL's machine may be set back while a transaction is in flight."""
SAME_TIME_SECONDS = 3600
PAGE = 1000
_MYSQL_LOCKED = 1205
_EPOCH = {
    "postgresql": "extract(epoch FROM clock_timestamp())",
    "sqlite": "CAST(strftime('%%s', 'now') AS INTEGER)",
    "mysql": "UNIX_TIMESTAMP()",
}


@dataclass(slots=True)
class Prefix:
    """What one process knows of one database: every key up to ``end`` was visible or never comes.

    ``seen`` and ``owners`` (PostgreSQL): the highest key when a gap was last seen, and the transactions that may own a
    key below it and have not ended.
    """

    end: int = 0
    seen: int = 0
    owners: frozenset[str] = frozenset()


_prefixes: dict[tuple[str, str], Prefix] = {}
_writing: WeakKeyDictionary[BaseDatabaseWrapper, Any] = WeakKeyDictionary()
"""The outermost ``atomic`` block in which a connection has made arrivals: they are visible to it alone."""


def is_folded(connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``lease.advance`` takes the position in its own statement."""
    return connection.vendor == "postgresql"


def allot(count: int) -> list[int]:
    """Take the next ``count`` positions, in one statement of the caller's transaction. Rising."""
    connection = connections[alias_of(Arrival)]
    table = connection.ops.quote_name(Arrival._meta.db_table)
    made = ARRIVAL_SQL[connection.vendor]
    found: list[int] = []
    note_arrivals(connection)
    with connection.cursor() as cursor:
        while len(found) < count:
            number = min(count - len(found), PAGE)
            if connection.vendor == "sqlite":
                cursor.execute(f"INSERT INTO {table} (at) VALUES {', '.join([f'({made})'] * number)}", [])
                found += range(cursor.lastrowid - number + 1, cursor.lastrowid + 1)
                continue
            rows = "(" + " UNION ALL ".join(["SELECT 1 AS one"] * number) + ") AS made"
            cursor.execute(f"INSERT INTO {table} (at) SELECT {made} FROM {rows} RETURNING id")
            found += sorted(pk for (pk,) in cursor.fetchall())
    return found


def note_arrivals(connection: BaseDatabaseWrapper) -> None:
    """Remember that the open transaction makes arrivals: until it commits, no bound of others may count on them."""
    if connection.in_atomic_block and connection.atomic_blocks:
        _writing[connection] = connection.atomic_blocks[0]


def lower_bound() -> int:
    """Return a position such that every arrival at or below it is committed and visible here, or never comes.

    One small query, and two more where a key is missing.
    """
    connection = connections[alias_of(Arrival)]
    if connection.vendor == "sqlite":
        return _highest(connection)
    key = (connection.alias, str(connection.settings_dict["NAME"]))
    known = _prefixes.get(key)
    found = None if known is None or not known.end else _extend(connection, known)
    if found is None:
        # New here, or what was known is gone (a flush, a restored backup).
        base = Prefix(_settled(connection), *((known.seen, known.owners) if known and not known.end else ()))
        found = _extend(connection, base) or base
    latest = _prefixes.get(key)
    if not _is_writing(connection) and (latest is None or latest is known or latest.end < found.end):
        _prefixes[key] = found
    return found.end


def bound_at(moment: datetime, now: datetime) -> int:
    """Return a lower bound for who counts from ``moment`` on, which is past: behind each arrival after it, by the
    database's clock. Where ``now`` is another time than the database's (a test that travels) it counts from now on."""
    connection = connections[alias_of(Arrival)]
    table = connection.ops.quote_name(Arrival._meta.db_table)
    value: Any = moment
    if connection.vendor != "postgresql":
        value = str(moment.astimezone(UTC).replace(tzinfo=None))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT abs({_EPOCH[connection.vendor]} - %s) < {SAME_TIME_SECONDS}, "
            f"(SELECT id FROM {table} WHERE at <= %s ORDER BY id DESC LIMIT 1)",
            [int(now.timestamp()), value],
        )
        is_real, latest = cursor.fetchone()
    return min(latest or 0, lower_bound()) if is_real else lower_bound()


def _is_writing(connection: BaseDatabaseWrapper) -> bool:
    if not connection.in_atomic_block or not connection.atomic_blocks:
        _writing.pop(connection, None)
        return False
    return _writing.get(connection) is connection.atomic_blocks[0]


def _highest(connection: BaseDatabaseWrapper) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT max(id) FROM {connection.ops.quote_name(Arrival._meta.db_table)}")
        return int(cursor.fetchone()[0] or 0)


def _settled(connection: BaseDatabaseWrapper) -> int:
    """Return the highest key that is so old that nothing below it is in flight."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {table} WHERE {_is_old(connection)} ORDER BY id DESC LIMIT 1")
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def _is_old(connection: BaseDatabaseWrapper, seconds: int = SETTLED_SECONDS) -> str:
    if connection.vendor == "sqlite":
        return f"at < {ARRIVAL_SQL['sqlite'][:-1]}, '-{seconds} seconds')"
    return f"at < {ARRIVAL_SQL[connection.vendor]} - INTERVAL '{seconds}' SECOND"


def _extend(connection: BaseDatabaseWrapper, known: Prefix) -> Prefix | None:
    """Return ``known`` with what has come since, or None if the arrival at its end is gone."""
    found = Prefix(known.end, known.seen, known.owners)
    dead_below = 0
    while True:
        rows = _page(connection, found.end)
        if found.end and (not rows or rows[0] != found.end):
            return None
        gap = next((pk for last, pk in pairwise([found.end, *rows]) if pk > max(last + 1, dead_below)), None)
        if gap is None:
            found.end = rows[-1] if rows else found.end
            if len(rows) < PAGE:
                return found
            continue
        found.end = max((pk for pk in rows if pk < gap), default=found.end)
        if connection.vendor == "mysql":
            if not _nobody_holds(connection, found.end, gap):
                return found
            dead_below = gap
            continue
        owners, older = _owners(connection, gap)
        if not older:
            dead_below = gap
            continue  # and they are read once more, because an owner may just have committed
        if gap > found.seen:
            found.seen, found.owners = rows[-1], owners
        else:
            found.owners &= owners
        if found.owners:
            return found
        dead_below = found.seen


def _page(connection: BaseDatabaseWrapper, start: int) -> list[int]:
    table = connection.ops.quote_name(Arrival._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {table} WHERE id >= %s ORDER BY id LIMIT {PAGE}", [start])
        return [int(pk) for (pk,) in cursor.fetchall()]


def _owners(connection: BaseDatabaseWrapper, arrived: int) -> tuple[frozenset[str], frozenset[str]]:
    """Return the transactions of others that have written to the table, or are about to, and have not ended; and those
    of them that began before the key ``arrived`` had: no other owns one below it."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    with connection.cursor() as cursor:
        # When the transactions of other users began is not shown to everybody; then they count as older.
        cursor.execute(
            "SELECT pg_locks.virtualtransaction, COALESCE(xact_start <= "
            f"(SELECT at + INTERVAL '{CLOCK_STEP_SECONDS} SECOND' FROM {table} WHERE id = %s), true) "
            "FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND relation = %s::regclass AND pid IS DISTINCT FROM pg_backend_pid()",
            [arrived, table],
        )
        found = cursor.fetchall()
    return frozenset(str(each) for each, _ in found), frozenset(str(each) for each, is_older in found if is_older)


def _nobody_holds(connection: BaseDatabaseWrapper, low: int, high: int) -> bool:
    """Return whether the keys between ``low`` and ``high`` were rolled back (MariaDB)."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@innodb_rollback_on_timeout")
        if cursor.fetchone()[0]:  # a refusal would roll back the caller's transaction: their age must do
            cursor.execute(f"SELECT {_is_old(connection)} FROM {table} WHERE id = %s", [high])
            found = cursor.fetchone()
            return bool(found and found[0])
        try:
            cursor.execute(f"SELECT id FROM {table} WHERE id > %s AND id < %s LOCK IN SHARE MODE NOWAIT", [low, high])
        except OperationalError as error:
            if error.args and error.args[0] == _MYSQL_LOCKED:
                return False
            raise
        return not cursor.fetchall()  # one that has committed since is found by the next look


def prune_arrivals(turn: Turn) -> Bite:
    """Remove arrivals that are older than the events that they number, by the database's clock; the newest stays.

    From the lowest key on: ages fall as keys rise.
    """
    connection = connections[alias_of(Arrival)]
    table = connection.ops.quote_name(Arrival._meta.db_table)
    is_old = _is_old(connection, int(conf().kept("EVENTS").total_seconds()))
    newest, removed = _highest(connection), 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT id, {is_old} FROM {table} WHERE id < %s ORDER BY id LIMIT {PAGE}", [newest])
            rows = cursor.fetchall()
            old = [pk for pk, _ in takewhile(lambda row: row[1], rows)]
            if old:
                cursor.execute(f"DELETE FROM {table} WHERE id <= %s", [old[-1]])
                removed += len(old)
        if len(old) < PAGE:
            return Bite(removed)
        if turn.is_over:
            return Bite(removed, position={"after": old[-1]})
