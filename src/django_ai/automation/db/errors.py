"""Classifies database errors: an error of user code, or a failure of the database (connection, lock, deadlock)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

# PostgreSQL, appendix A: connection exceptions, transaction rollback (serialization, deadlock), insufficient resources,
# operator intervention (not 57014: a cancelled statement would be cancelled again), system errors; and single codes:
# lock not available, a primary that has become a standby. Not 25P03: a transaction that idled would idle again.
_PG_CLASSES = ("08", "40", "53", "57P", "58")
_PG_CODES = ("55P03", "25006")

# MariaDB: too many connections, server gone, lost connection, killed, lock wait timeout, deadlock, shutdown, record
# changed, disk full, read-only.
_MYSQL_CODES = {
    1020, 1021, 1040, 1042, 1043, 1047, 1053, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1206, 1213, 1290,
    1836, 1927, 2002, 2003, 2006, 2013, 2055, 4031,
}  # fmt: skip
_LOST_MYSQL_CODES = {1040, 1042, 1043, 1047, 1053, 1129, 1203, 1927, 2002, 2003, 2006, 2013, 2055, 4031}

# SQLite: busy, locked, input/output, full, cannot open, locking protocol (https://www.sqlite.org/rescode.html).
_SQLITE_CODES = {5, 6, 10, 13, 14, 15}


def is_database_failure(error: BaseException, connection: BaseDatabaseWrapper) -> bool:
    """Return whether ``error`` is a failure of the database (connection, deadlock, lock), not an error of user code.

    Such a failure does not count as an attempt. The driver's own error decides, so it may come from any database of the
    project; ``connection`` decides if that error has no code.
    """
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, DatabaseError):
        return False
    cause: Any = error.__cause__
    if isinstance(error, TransactionManagementError):
        # Django raises it for a statement after a failed one, which is its cause and decides.
        return cause is not None and is_database_failure(cause, connection)
    state, sqlite = getattr(cause, "sqlstate", None), getattr(cause, "sqlite_errorcode", None)
    if isinstance(state, str):
        return state.startswith(_PG_CLASSES) or state in _PG_CODES
    if isinstance(sqlite, int):
        return sqlite & 0xFF in _SQLITE_CODES  # the higher bits are details
    if not isinstance(error, OperationalError):
        return False
    if connection.vendor == "mysql":
        return cause is not None and bool(cause.args) and cause.args[0] in _MYSQL_CODES
    # Only a broken connection to PostgreSQL fails without a code: the server could send none.
    return connection.vendor == "postgresql"


def is_from_other_connection(error: BaseException, connection: BaseDatabaseWrapper, session: Any) -> bool:
    """Return whether ``error``, a lost connection, belongs to another connection: ``session``, which ``connection`` had
    before, still answers. Then another database of the project is unreachable, or user code has used a connection that
    it had closed. (If the session was lost, Django may have opened a new one by now.)"""
    if session is None or connection.connection is not session or not _is_lost_connection(error):
        return False
    return not connection.in_atomic_block and bool(connection.is_usable())


@contextlib.contextmanager
def own_failures(connection: BaseDatabaseWrapper) -> Iterator[Callable[[BaseException], bool]]:
    """Yield a function that returns whether an error of the block is a database failure of ``connection``, as opposed
    to one of another database, or one that user code raised itself. Django records on a connection that it had
    errors."""
    before, connection.errors_occurred = connection.errors_occurred, False
    try:
        yield lambda error: connection.errors_occurred and is_database_failure(error, connection)
    finally:
        connection.errors_occurred = connection.errors_occurred or before


def _is_lost_connection(error: BaseException) -> bool:
    cause: Any = error.__cause__
    state, sqlite = getattr(cause, "sqlstate", None), getattr(cause, "sqlite_errorcode", None)
    if isinstance(error, TransactionManagementError):
        return cause is not None and _is_lost_connection(cause)
    if isinstance(state, str):
        return state.startswith(("08", "57P"))
    if isinstance(sqlite, int):
        return sqlite & 0xFF == 14
    if isinstance(error, OperationalError) and cause is not None and cause.args and isinstance(cause.args[0], int):
        return cause.args[0] in _LOST_MYSQL_CODES
    return isinstance(error, InterfaceError | OperationalError)


def hint_for(error: BaseException) -> str:
    """Return a hint on how to fix a database error, or an empty string."""
    cause: Any = error.__cause__
    is_missing = getattr(cause, "sqlstate", None) == "42P01" or getattr(cause, "args", ())[:1] == (1146,)
    is_ours = "automation_" in str(error) and (is_missing or "no such table" in str(error))
    return " Have the migrations been applied? Run: python manage.py migrate" if is_ours else ""
