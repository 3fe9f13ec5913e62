"""Positions: one order for everything that arrives (occurrences of events, deliveries of signals), independent of any
clock.

Each arrival gets the next key of the table ``Arrival`` in the short transaction that commits it (``allocate``, or
``advance`` itself on PostgreSQL). A run that starts to wait, or an agent that is spawned, stores a *lower bound*: a
position such that everything at or below it was committed and visible by then (``lower_bound``). Everything above it is
new to that run or agent, however late a worker delivers it and whatever the clocks of the machines say; a ledger
records what it has consumed.

The highest visible key is no lower bound, because a lower key may commit later. The bound is the end of the *committed
prefix* of keys (``committed_prefix``). On SQLite, which has one writer, the highest key is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..db.database_clock import DATABASE_NOW_SQL
from ..db.inserts import insert_selecting
from ..db.writer import alias_of
from .committed_prefix import (
    PAGE,
    CommittedPrefix,
    empty_end_sql,
    extend,
    gapless_end_sql,
    highest_key,
    settled_key,
)
from .models import Arrival

SAME_TIME_SECONDS = 3600
"""How far the caller's time may differ from the database's and still count as the same."""
_EPOCH = {
    "postgresql": "extract(epoch FROM clock_timestamp())",
    "sqlite": "CAST(strftime('%%s', 'now') AS INTEGER)",
    "mysql": "UNIX_TIMESTAMP()",
}


_prefixes: dict[tuple[str, str], CommittedPrefix] = {}
_writing: WeakKeyDictionary[BaseDatabaseWrapper, Any] = WeakKeyDictionary()
"""The outermost ``atomic`` block in which a connection has inserted arrivals: only this connection sees them."""


def is_allocated_by_advance(connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``advance`` allocates the position in its own statement."""
    return connection.vendor == "postgresql"


def allocate(count: int) -> list[int]:
    """Allocate the next ``count`` positions, in ascending order, inside the caller's transaction."""
    connection = connections[alias_of(Arrival)]
    table = connection.ops.quote_name(Arrival._meta.db_table)
    now = DATABASE_NOW_SQL[connection.vendor]
    found: list[int] = []
    record_arrivals(connection)
    with connection.cursor() as cursor:
        while len(found) < count:
            number = min(count - len(found), PAGE)
            if connection.vendor == "sqlite":
                cursor.execute(f"INSERT INTO {table} (at) VALUES {', '.join([f'({now})'] * number)}", [])
                found += range(cursor.lastrowid - number + 1, cursor.lastrowid + 1)
                continue
            rows = "(" + " UNION ALL ".join(["SELECT 1 AS one"] * number) + ") AS made"
            cursor.execute(f"INSERT INTO {table} (at) SELECT {now} FROM {rows} RETURNING id")
            found += sorted(pk for (pk,) in cursor.fetchall())
    return found


def record_arrivals(connection: BaseDatabaseWrapper) -> None:
    """Remember that the open transaction inserts arrivals: no bound that other code uses may include them before the
    commit."""
    if connection.in_atomic_block and connection.atomic_blocks:
        _writing[connection] = connection.atomic_blocks[0]


def lower_bound() -> int:
    """Return a position such that every arrival at or below it is committed and visible here, or never comes.

    Costs one small query, and two more if a key is missing.
    """
    connection = connections[alias_of(Arrival)]
    if connection.vendor == "sqlite":
        return highest_key(connection)
    known = _known(connection)
    found = None if known is None or not known.end else extend(connection, known)
    if found is None:
        # This process is new, or what it knew is gone (a flush, a restored backup).
        gap = (known.seen, known.owners) if known and not known.end else ()
        base = CommittedPrefix(settled_key(connection), *gap)
        found = extend(connection, base) or base
    _remember(connection, known, found)
    return found.end


def insert_bounded(
    row: models.Model,
    *,
    at_most: int | None = None,
    unless: str = "",
    params: Sequence[Any] = (),
    ignoring: bool = False,
) -> bool:
    """Insert ``row`` with a ``lower_bound()`` as its ``position``, or with ``at_most`` if that is lower, in one
    statement. Return whether it was inserted.

    It is not where the statement cannot find the bound, because a key is missing: then the caller inserts the row with
    ``lower_bound()``. Nor is it if the query ``unless``, with its ``params``, has a row, or, with ``ignoring``, if its
    unique key is taken. It is always False on other databases than PostgreSQL.
    """
    bound = statement_bound(connections[alias_of(Arrival)])
    if bound is None:
        return False
    source = bound.sql + (f" WHERE NOT EXISTS ({unless})" if unless else "")
    if not insert_selecting(row, "position", source, [*bound.params(at_most), *params], ignoring=ignoring):
        return False
    bound.remember(row.position)  # type: ignore[attr-defined]
    return True


@dataclass(frozen=True, slots=True)
class StatementBound:
    """A ``lower_bound()`` that a statement on PostgreSQL finds itself: the ``value`` of the one row of the relation
    ``sql``, which has none if a key is missing."""

    connection: BaseDatabaseWrapper
    known: CommittedPrefix

    @property
    def sql(self) -> str:
        return (gapless_end_sql if self.known.end else empty_end_sql)(self.connection)

    def params(self, at_most: int | None = None) -> list[int | None]:
        """Return the parameters of ``sql``. ``at_most``: the ``value`` is not above this."""
        return [at_most, self.known.end, self.known.end] if self.known.end else [at_most]

    def remember(self, end: int) -> None:
        """Continue from what the statement has found next time."""
        found = CommittedPrefix(end, self.known.seen, self.known.owners)
        _remember(self.connection, self.known, found)


def statement_bound(connection: BaseDatabaseWrapper) -> StatementBound | None:
    """Return the bound for a statement, or None where it cannot find one."""
    known = _known(connection)
    if connection.vendor != "postgresql" or known is None:
        return None
    return StatementBound(connection, known)


def _known(connection: BaseDatabaseWrapper) -> CommittedPrefix | None:
    """Return what this process knows of the prefix."""
    return _prefixes.get(_database_of(connection))


def _remember(connection: BaseDatabaseWrapper, known: CommittedPrefix | None, found: CommittedPrefix) -> None:
    """Continue from ``found`` next time, which extends ``known``, unless another thread has found more."""
    if _is_writing(connection):
        # Its own arrivals are visible here only, until the commit. A process that never looks outside of such a
        # transaction would otherwise begin anew each time, and read the arrivals of a minute.
        transaction.on_commit(partial(_keep, connection, known, found), using=connection.alias)
    else:
        _keep(connection, known, found)


def _keep(connection: BaseDatabaseWrapper, known: CommittedPrefix | None, found: CommittedPrefix) -> None:
    latest = _known(connection)
    if _is_writing(connection):
        return  # a test that executes the hooks of a transaction which it does not commit
    if latest is None or latest is known or latest.end < found.end:
        _prefixes[_database_of(connection)] = found


def _database_of(connection: BaseDatabaseWrapper) -> tuple[str, str]:
    return connection.alias, str(connection.settings_dict["NAME"])


def bound_at(moment: datetime, now: datetime) -> int:
    """Return a lower bound as of ``moment``, which is past: it is below every arrival after ``moment``, by the
    database's clock. If ``now`` differs from the database's time (time travel in a test), return the current bound."""
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
