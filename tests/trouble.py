"""Trouble of the database: its errors as they come, and real ones provoked, with the locks seen."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from django.db import OperationalError, connection, connections

from tests.runtimes.cluster import until


def database_trouble() -> OperationalError:
    """Return an error as this database raises it when somebody else is in the way."""
    if connection.vendor == "postgresql":
        from psycopg.errors import DeadlockDetected

        error = OperationalError("deadlock detected")
        error.__cause__ = DeadlockDetected("deadlock detected")
        return error
    if connection.vendor == "mysql":
        error = OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")
        error.__cause__ = RuntimeError(*error.args)  # the driver's own, with the same number
        return error
    error = OperationalError("database is locked")
    error.__cause__ = sqlite3.OperationalError("database is locked")
    error.__cause__.sqlite_errorcode = sqlite3.SQLITE_BUSY  # type: ignore[attr-defined]
    return error


class Together:
    """Work in a thread of its own, with a database connection of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        finally:
            connections.close_all()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float = 60) -> Any:
        """Wait for the end, and return what the work returned, or raise what it raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "The thread did not end."
        if self.error is not None:
            raise self.error
        return self.result


WAITING = {
    "postgresql": "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
    "WHERE NOT l.granted AND a.datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}
WAITING_FOR_US = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))",
    "mysql": "SELECT count(*) FROM information_schema.innodb_lock_waits JOIN information_schema.innodb_trx "
    "ON trx_id = blocking_trx_id WHERE trx_mysql_thread_id = CONNECTION_ID()",
}


def someone_waits() -> bool:
    """Say whether some session of this database waits for a lock of another: asked of the server, not guessed."""
    return _is_there(WAITING)


def someone_waits_for_us() -> bool:
    """Say whether somebody waits for a lock that this connection holds."""
    return _is_there(WAITING_FOR_US)


def _is_there(queries: dict[str, str]) -> bool:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction sees the activity of its first look
        else:
            # InnoDB shows the same picture again to whoever asks within a tenth of a second of the last look.
            time.sleep(0.15)
        cursor.execute(queries[connection.vendor])
        return bool(cursor.fetchone()[0])


def until_someone_waits() -> None:
    until(someone_waits, 30, "A session that waits for a lock")


@contextlib.contextmanager
def held_snapshot() -> Iterator[None]:
    """Hold a snapshot of PostgreSQL open in a connection of its own, as a report or a backup does."""
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM automation_workflows_signal")
        yield
    finally:
        other.close()
