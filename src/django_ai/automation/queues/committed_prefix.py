"""The committed prefix of the table ``Arrival``: up to which key every arrival is visible, or never comes.

Keys are handed out in another order than transactions commit, so a key below the highest visible one may still commit
later. The prefix ends before the first missing key, because that key may belong to an open transaction. A missing key
whose transaction was rolled back never comes; the prefix continues past it as soon as that is certain:

* PostgreSQL: the owner of a key has locked the table for writing before it gets the key, and holds the lock until it
  ends. A key was rolled back if it is still missing when none of the transactions that held that lock at the first scan
  is open any more. A transaction that began after the next key had arrived owns no key below it;
* MariaDB: the owner holds a row lock from the statement on that makes the key (``INSERT ... SELECT`` prevents other
  keys meanwhile), and NOWAIT distinguishes a locked row from a row that does not exist.

SQLite has one writer and needs none of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from ..db.database_clock import DATABASE_NOW_SQL
from .models import Arrival

SETTLED_SECONDS = 60
"""A new process starts after the last arrival that is at least this old."""
MAX_CLOCK_STEP_SECONDS = 10
"""How far the clock of PostgreSQL's machine may be set back while a transaction is open."""
PAGE = 1000
_MYSQL_LOCK_WAIT_TIMEOUT = 1205

_OPEN_WRITERS = (
    "pg_locks LEFT JOIN pg_stat_activity USING (pid) WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND relation = %s::regclass AND pid IS DISTINCT FROM pg_backend_pid()"
)
"""The open transactions of others that have written to the table ``Arrival``, or are about to (PostgreSQL)."""


@dataclass(slots=True)
class CommittedPrefix:
    """What one process knows of one database: every key up to ``end`` was visible or never comes.

    ``seen`` and ``owners`` (PostgreSQL): the highest key when a gap was last seen, and the transactions that may own a
    key below it and are still open.
    """

    end: int = 0
    seen: int = 0
    owners: frozenset[str] = frozenset()


def highest_key(connection: BaseDatabaseWrapper) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT max(id) FROM {connection.ops.quote_name(Arrival._meta.db_table)}")
        return int(cursor.fetchone()[0] or 0)


def settled_key(connection: BaseDatabaseWrapper) -> int:
    """Return the highest key that is so old that no transaction with a lower key can be open.

    On PostgreSQL it is also older than every open writer: one may have waited for a row lock since it got its key. On
    MariaDB such a wait ends after ``innodb_lock_wait_timeout``, 50 seconds by default.
    """
    table = connection.ops.quote_name(Arrival._meta.db_table)
    older = older_than_sql(connection, SETTLED_SECONDS)
    params: list[str] = []
    if connection.vendor == "postgresql":
        older += f" AND at < (SELECT COALESCE(min(xact_start), 'infinity') FROM {_OPEN_WRITERS})"
        params = [table]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {table} WHERE {older} ORDER BY id DESC LIMIT 1", params)
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def older_than_sql(connection: BaseDatabaseWrapper, seconds: int) -> str:
    """Return the SQL condition that an arrival is older than ``seconds``, by the database's clock."""
    if connection.vendor == "sqlite":
        return f"at < {DATABASE_NOW_SQL['sqlite'][:-1]}, '-{seconds} seconds')"
    return f"at < {DATABASE_NOW_SQL[connection.vendor]} - INTERVAL '{seconds}' SECOND"


def extend(connection: BaseDatabaseWrapper, known: CommittedPrefix) -> CommittedPrefix | None:
    """Return ``known`` extended by what was committed since, or None if the arrival at its end is gone."""
    found = CommittedPrefix(known.end, known.seen, known.owners)
    rolled_back_below = 0
    while True:
        rows = _page(connection, found.end)
        if found.end and (not rows or rows[0] != found.end):
            return None
        gap = next((pk for last, pk in pairwise([found.end, *rows]) if pk > max(last + 1, rolled_back_below)), None)
        if gap is None:
            found.end = rows[-1] if rows else found.end
            if len(rows) < PAGE:
                return found
            continue
        found.end = max((pk for pk in rows if pk < gap), default=found.end)
        if connection.vendor == "mysql":
            if not _were_rolled_back(connection, found.end, gap):
                return found
            rolled_back_below = gap
            continue
        owners, older = _open_writers(connection, gap)
        if not older:
            rolled_back_below = gap
            continue  # read these keys once more, because an owner may just have committed
        if gap > found.seen:
            found.seen, found.owners = rows[-1], owners
        else:
            found.owners &= owners
        if found.owners:
            return found
        rolled_back_below = found.seen


def _page(connection: BaseDatabaseWrapper, start: int) -> list[int]:
    table = connection.ops.quote_name(Arrival._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {table} WHERE id >= %s ORDER BY id LIMIT {PAGE}", [start])
        return [int(pk) for (pk,) in cursor.fetchall()]


def gapless_end_sql(connection: BaseDatabaseWrapper) -> str:
    """Return a relation for a statement on PostgreSQL, whose ``value`` is the highest key, or a limit if that is lower.
    It has no row if a key between the given end of the prefix and the highest one is missing, or if they are too many.
    Its parameters are the limit, which may be NULL, and twice that end."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    return (
        f"(SELECT least(max(id), %s::bigint) AS value "
        f"FROM (SELECT id FROM {table} WHERE id >= %s ORDER BY id LIMIT {PAGE}) AS page "
        f"HAVING min(id) = %s AND count(*) = max(id) - min(id) + 1 AND count(*) < {PAGE}) AS prefix"
    )


def empty_end_sql(connection: BaseDatabaseWrapper) -> str:
    """Return such a relation for a prefix without keys. It has no row if there is a key. Its parameter is the limit."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    return f"(SELECT least(0, %s::bigint) AS value WHERE NOT EXISTS (SELECT 1 FROM {table})) AS prefix"


def _open_writers(connection: BaseDatabaseWrapper, arrived: int) -> tuple[frozenset[str], frozenset[str]]:
    """Return the open transactions of others that have written to the table, or are about to (PostgreSQL); and those of
    them that began before the key ``arrived`` had arrived: no other owns a key below it."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    with connection.cursor() as cursor:
        # PostgreSQL may hide when transactions of other users began; those count as older.
        cursor.execute(
            "SELECT pg_locks.virtualtransaction, COALESCE(xact_start <= "
            f"(SELECT at + INTERVAL '{MAX_CLOCK_STEP_SECONDS} SECOND' FROM {table} WHERE id = %s), true) "
            f"FROM {_OPEN_WRITERS}",
            [arrived, table],
        )
        found = cursor.fetchall()
    return frozenset(str(each) for each, _ in found), frozenset(str(each) for each, is_older in found if is_older)


def _were_rolled_back(connection: BaseDatabaseWrapper, low: int, high: int) -> bool:
    """Return whether the keys between ``low`` and ``high`` were rolled back (MariaDB)."""
    table = connection.ops.quote_name(Arrival._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@innodb_rollback_on_timeout")
        if cursor.fetchone()[0]:  # NOWAIT could roll back the caller's transaction, so decide by age
            cursor.execute(f"SELECT {older_than_sql(connection, SETTLED_SECONDS)} FROM {table} WHERE id = %s", [high])
            found = cursor.fetchone()
            return bool(found and found[0])
        try:
            cursor.execute(f"SELECT id FROM {table} WHERE id > %s AND id < %s LOCK IN SHARE MODE NOWAIT", [low, high])
        except OperationalError as error:
            if error.args and error.args[0] == _MYSQL_LOCK_WAIT_TIMEOUT:
                return False
            raise
        return not cursor.fetchall()  # a key that was committed since is found by the next scan
