"""What the open transaction of a connection has written to captured tables.

All writes of one transaction are one write, so their outbox rows must be known as such, after the process has died,
too. PostgreSQL's triggers write the transaction id; it is negative for statements that were not heard (COPY, stored
procedures, other programs), which no save of the same transaction may take for its own. On MariaDB they write a session
variable, which is set before the first write of a transaction. SQLite has neither: there the rows are marked after each
statement, by their keys, which is exact because only one transaction writes at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from django.db import OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ....queues.causation import cause_now
from ...models import CapturedWrite
from ..transaction_blocks import is_in_test_case, is_outside_of_blocks, outermost_block
from .fetched import fetch_rows


@dataclass(eq=False)
class Writes:
    """What one transaction has written, or one statement outside a transaction.

    ``number``: what its outbox rows have in ``transaction`` (on PostgreSQL only in a ``TestCase``). ``last_key``: the
    highest key of the outbox before its first write (SQLite; None: the outbox does not exist yet). ``saved``: the
    entities that were saved, by root label and key. ``is_bulk``: whether it has written anything that sends no signal.
    ``seen``: the highest key of an own outbox row that was looked at. ``block``: what counts as the transaction.

    It is a commit hook of the transaction that no rollback of a savepoint removes: as long as Django keeps it, the
    transaction is open.
    """

    number: int = 0
    last_key: int | None = None
    saved: set[tuple[str, str]] = field(default_factory=set)
    is_bulk: bool = False
    is_over: bool = False
    seen: int = 0
    block: object = None
    _place: int = 0

    def __post_init__(self) -> None:
        self.__qualname__ = type(self).__name__  # Django logs the name of a hook that fails

    def __call__(self) -> None:
        self.is_over = True

    def begin(self, connection: BaseDatabaseWrapper) -> None:
        hooks: Any = connection.run_on_commit
        transaction.on_commit(self, using=connection.alias, robust=True)
        hooks[-1] = (set(), *hooks[-1][1:])  # of no savepoint
        self._place, self.block = len(hooks) - 1, outermost_block(connection)

    def is_open(self, connection: BaseDatabaseWrapper) -> bool:
        hooks: Any = connection.run_on_commit
        if self.is_over or not connection.in_atomic_block or is_outside_of_blocks(connection):
            return False
        if self.block != outermost_block(connection):
            return False
        if self._place < len(hooks) and hooks[self._place][1] is self:
            return True
        # The rollback of a savepoint has removed hooks before this one, or the transaction is over.
        self._place = next((place for place, hook in enumerate(hooks) if hook[1] is self), len(hooks))
        self.is_over = self._place == len(hooks)
        return not self.is_over


_open: WeakKeyDictionary[BaseDatabaseWrapper, Writes] = WeakKeyDictionary()
_variables: WeakKeyDictionary[BaseDatabaseWrapper, tuple[Any, tuple[object, ...]]] = WeakKeyDictionary()
"""What the session variables of a connection to MariaDB hold, with the session that holds it."""


def writes_of(connection: BaseDatabaseWrapper) -> Writes | None:
    """Return what the open transaction has written; None: nothing yet, or no transaction is open."""
    found = _open.get(connection)
    return found if found is not None and found.is_open(connection) else None


def begin_write(connection: BaseDatabaseWrapper) -> Writes:
    """Prepare a statement that writes to a captured table, and return what its transaction has written before."""
    found = writes_of(connection)
    if found is None:
        found = Writes()
        if connection.in_atomic_block:
            if connection.vendor == "sqlite":
                found.last_key = _last_key(connection)
            if connection.vendor == "mysql" or found.last_key is not None or is_in_test_case(connection):
                found.number = secrets.randbits(62) + 1
            found.begin(connection)
            _open[connection] = found
    if connection.vendor == "mysql":
        label, depth = cause_now()
        _set_variables(connection, (found.number or None, label or None, depth if label else None))
    return found


def execute_uncaptured(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
    """Execute a statement whose writes to captured tables the outbox does not get. ``sql``: with the comment that tells
    PostgreSQL so."""
    connection: BaseDatabaseWrapper = context["connection"]
    if connection.vendor == "postgresql":
        return execute(sql, params, many, context)
    with transaction.atomic(using=connection.alias, savepoint=False):
        if connection.vendor == "sqlite":
            last_key = _last_key(connection)
            result = execute(sql, params, many, context)
            fetch_rows(context["cursor"])
            if last_key is not None:
                CapturedWrite.objects.using(connection.alias).filter(pk__gt=last_key).delete()
            return result
        try:
            with connection.cursor() as cursor:
                cursor.execute("DO @automation_uncaptured := 1")
            return execute(sql, params, many, context)
        finally:
            with connection.cursor() as cursor:
                cursor.execute("DO @automation_uncaptured := NULL")


def mark_rows(connection: BaseDatabaseWrapper, writes: Writes) -> None:
    """Give the outbox rows of a statement their transaction and cause, where the trigger could not (SQLite)."""
    if writes.last_key is None:
        return
    caused_by, depth = cause_now()
    CapturedWrite.objects.using(connection.alias).filter(pk__gt=writes.last_key, transaction=None).update(
        transaction=writes.number,
        caused_by=caused_by,
        depth=depth,
    )


def _last_key(connection: BaseDatabaseWrapper) -> int | None:
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT max(id) FROM {connection.ops.quote_name(CapturedWrite._meta.db_table)}")
            return int(cursor.fetchone()[0] or 0)
    except OperationalError:  # a migration that runs before ours; on SQLite an error does not end the transaction
        return None


def _set_variables(connection: BaseDatabaseWrapper, values: tuple[int | str | None, ...]) -> None:
    known = _variables.get(connection)
    if known is not None and known[0] is connection.connection and known[1] == values:
        return
    if connection.connection is None:
        connection.ensure_connection()
    if known is None and values == (None, None, None):
        return  # a session that has not set them
    with connection.cursor() as cursor:
        # Not SET, which restores and replaces sessions that user code has changed (``db/session.py``).
        cursor.execute(
            "DO @automation_transaction := %s, @automation_cause := %s, @automation_depth := %s", list(values)
        )
    _variables[connection] = (connection.connection, values)


OWN_SQL = {
    "postgresql": "{transaction} = pg_current_xact_id()::text::bigint",
    "mysql": "{transaction} <=> @automation_transaction",
    "sqlite": "id > {last_key}",
}
"""Whether an outbox row was written by the open transaction."""


def own_sql(connection: BaseDatabaseWrapper) -> str:
    """Return the SQL expression of whether an outbox row was written by the open transaction, which has written."""
    writes = writes_of(connection)
    is_numbered = connection.vendor != "postgresql" or is_in_test_case(connection)
    if is_numbered and (writes is None or not writes.number):
        return "1 = 0"
    column = connection.ops.quote_name("transaction")
    if connection.vendor == "postgresql" and writes is not None and is_numbered:
        return f"{column} = {writes.number}"
    return OWN_SQL[connection.vendor].format(transaction=column, last_key=writes.last_key if writes else "")
