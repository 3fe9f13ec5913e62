"""Injected faults: database failures, and a process that dies at one of its SQL statements.

From the statement at which the process dies, nothing more reaches the database: no release of leases, no notification
and no cleanup. An open transaction is rolled back, as the server does when a connection breaks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError, connection

from django_ai.automation.events import commit_batch
from django_ai.automation.queues import notifier


def database_failure() -> OperationalError:
    """Return the error that this database raises for a conflict with another transaction."""
    if connection.vendor == "postgresql":
        from psycopg.errors import DeadlockDetected

        error = OperationalError("deadlock detected")
        error.__cause__ = DeadlockDetected("deadlock detected")
        return error
    if connection.vendor == "mysql":
        error = OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")
        error.__cause__ = RuntimeError(*error.args)  # the driver's error has the same number
        return error
    error = OperationalError("database is locked")
    error.__cause__ = sqlite3.OperationalError("database is locked")
    error.__cause__.sqlite_errorcode = sqlite3.SQLITE_BUSY  # type: ignore[attr-defined]
    return error


class Died(BaseException):
    """Simulates that the process has died."""


@contextmanager
def dying(at: int) -> Iterator[None]:
    """Let the block die at its SQL statement number ``at`` (from 1), or finish if it has fewer statements."""
    statements = 0

    def perhaps(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        nonlocal statements
        if str(sql).startswith(("ROLLBACK", "RELEASE", "SAVEPOINT")):
            return execute(sql, params, many, context)
        statements += 1
        if statements >= at:
            raise Died
        return execute(sql, params, many, context)

    try:
        with connection.execute_wrapper(perhaps):
            yield
    except Died:
        pass
    finally:
        if statements >= at:
            # A process that dies loses its state in memory.
            connection.run_on_commit = []
            connection.close()
            commit_batch._batches.clear()
            notifier._hooks.clear()
