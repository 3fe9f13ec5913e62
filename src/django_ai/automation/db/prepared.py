"""Prepared statements on PostgreSQL: the engine's own hot statements are parsed and planned once for each session.

Django never prepares: it binds parameters on the client, and the server parses and plans each statement anew. For the
engine's claims, progress and starts that takes longer than executing them. The cursor of ``prepared_cursor`` sends
PREPARE for such a statement once, and EXECUTE from then on. Everything above the driver is as with any cursor of
Django: execute wrappers see the statement itself, and errors are Django's. Statements of user code on the same
connection, and the options of the connection, are left alone.

Where it could do harm, the statement is sent as it is:

* In a transaction. A prepared statement fails when user code has deallocated it, or when a migration has changed the
  columns that it returns. In autocommit that is harmless, because nothing was written: it is sent again, as it is. In a
  transaction the failure would undo the work of the transaction.
* Behind a pooler, which may send each statement to another server process.
* On a connection that executes few statements; while Django logs queries, because it logs what was sent; and with a
  cursor class that is not Django's, which may have to see what is sent.

The names are digests of the statements, so a name never stands for another statement. PostgreSQL keeps a plan until the
statistics of its tables change, and a plan for an empty table is bad for a full one: each statement is prepared again
after ``REPLAN_SECONDS``.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

from ..conf import conf
from .connections import is_pooled

logger = logging.getLogger("django_ai.automation")

REPLAN_SECONDS = 10.0
"""After how long a statement is prepared again, with a plan for the tables as they are by then."""
WARM_UP = 5
"""How many hot statements a session executes as they are. A connection that is closed earlier gains nothing."""
MAX_STATEMENTS = 100
"""How many statements a session prepares. One more replaces one that was not used for ``REPLAN_SECONDS``, or is sent as
it is."""
MAX_DEALLOCATED = 3
"""After how many times that statements were deallocated by other code a session prepares no more."""
_DJANGO = "django.db.backends.postgresql.base"
_IDLE = 0  # PQTRANS_IDLE: no transaction, not even one that Django does not know about

Execute = Callable[..., Any]


def prepared_cursor(connection: BaseDatabaseWrapper) -> Any:
    """Return a cursor for hot statements of the engine with ``%s`` parameters, whose types PostgreSQL can infer."""
    if not _may_prepare(connection):
        return connection.cursor()
    raw: Any = connection.connection
    before, raw.cursor_factory = raw.cursor_factory, _cursor_class(connection.Database.ClientCursor)  # type: ignore[attr-defined]
    try:
        return connection.cursor()  # with the wrappers and the time zone that Django gives each cursor
    finally:
        raw.cursor_factory = before


def _may_prepare(connection: BaseDatabaseWrapper) -> bool:
    if connection.vendor != "postgresql" or connection.in_atomic_block or connection.queries_logged:
        return False
    if not conf().PREPARED_STATEMENTS:
        return False
    connection.ensure_connection()
    raw: Any = connection.connection
    if not hasattr(raw, "pgconn") or getattr(raw.cursor_factory, "__module__", "") != _DJANGO:
        return False
    if not raw.autocommit or raw.pgconn.transaction_status != _IDLE:
        return False
    statements = _sessions.get(raw)
    if statements is None:
        statements = _sessions[raw] = PreparedStatements()
    return statements.are_used(connection)


class PreparedStatements:
    """What one database session has prepared."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[str | None, float]] = {}
        self._warm_up = WARM_UP
        self._deallocated = 0

    def are_used(self, connection: BaseDatabaseWrapper) -> bool:
        """Count one more hot statement of the session, and return whether it may be prepared."""
        if self._warm_up:
            self._warm_up -= 1
            if not self._warm_up and is_pooled(connection):
                self._deallocated = MAX_DEALLOCATED
            return False
        return self._deallocated < MAX_DEALLOCATED

    def execute(self, sql: str, params: Any, execute: Execute) -> Any:
        """Execute ``sql``, prepared if that is possible."""
        try:
            call = self._call(sql, execute)
            if call is not None:
                return execute(call, params)
        except Exception as error:
            if not self._failed_as_prepared(sql, str(getattr(error, "sqlstate", ""))):
                raise
        return execute(sql, params)

    def _call(self, sql: str, execute: Execute) -> str | None:
        """Return the EXECUTE for ``sql``, which is prepared first if it is not. None: send it as it is."""
        call, expires = self._calls.get(sql, (None, 0.0))
        now = time.monotonic()
        if now < expires:
            return call
        count = sql.count("%s")
        if sql.count("%") != count or (not expires and not self._has_place(now, execute)):
            return None
        name = _name_of(sql)
        if expires:
            _execute_unless(execute, "26000", f"DEALLOCATE {name}")  # unknown by now
        parts = sql.split("%s")
        text = parts[0] + "".join(f"${number}{part}" for number, part in enumerate(parts[1:], 1))
        _execute_unless(execute, "42P05", f"PREPARE {name} AS {text}")  # still known; see the names
        call = f"EXECUTE {name} ({', '.join(['%s'] * count)})" if count else f"EXECUTE {name}"
        self._calls[sql] = call, now + REPLAN_SECONDS
        return call

    def _has_place(self, now: float, execute: Execute) -> bool:
        """Return whether one more statement may be prepared, perhaps in place of one that was not used lately."""
        if len(self._calls) < MAX_STATEMENTS:
            return True
        unused = next((sql for sql, (_, expires) in self._calls.items() if expires < now), None)
        if unused is None:
            return False
        call, _ = self._calls.pop(unused)
        if call is not None:
            _execute_unless(execute, "26000", f"DEALLOCATE {_name_of(unused)}")
        return True

    def _failed_as_prepared(self, sql: str, state: str) -> bool:
        """Return whether ``sql`` failed because it was prepared, or perhaps did. Then it was not executed."""
        if state == "26000":  # unknown: DISCARD ALL and DEALLOCATE ALL leave none
            self._calls.clear()
            self._deallocated += 1
            if self._deallocated == MAX_DEALLOCATED:
                logger.info("Other code deallocates prepared statements: this database session prepares no more.")
            return True
        # The columns that it returns, or the types of its parameters, may have changed since it was prepared.
        if state.startswith(("0A", "22", "42")):
            self._calls[sql] = None, time.monotonic() + REPLAN_SECONDS
            return True
        return False


_sessions: WeakKeyDictionary[Any, PreparedStatements] = WeakKeyDictionary()


def _name_of(sql: str) -> str:
    return f"automation_{hashlib.blake2b(sql.encode(), digest_size=8).hexdigest()}"


def _execute_unless(execute: Execute, state: str, sql: str) -> None:
    """Execute ``sql``, and ignore the error with the code ``state``."""
    try:
        execute(sql)
    except Exception as error:
        if getattr(error, "sqlstate", "") != state:
            raise


@lru_cache(maxsize=1)
def _cursor_class(client_cursor: Any) -> Any:
    """Return the class of cursors that prepare. It is made when it is needed, because psycopg need not be installed."""

    class PreparedCursor(client_cursor):  # type: ignore[misc]
        def execute(self, query: str, params: Any = None, **options: Any) -> Any:
            return _sessions[self.connection].execute(query, params, super().execute)

    return PreparedCursor
