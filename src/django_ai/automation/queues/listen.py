"""Wait for a NOTIFY on PostgreSQL, for a while elsewhere: how an idle worker sleeps."""

from __future__ import annotations

import select
import time
from typing import Any

from django.db import DatabaseError, connections

from .q2 import CHANNEL


class Listener:
    """A connection of its own that LISTENs; without PostgreSQL and psycopg 3 it only sleeps."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._connection: Any = None

    def wait(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until somebody rings. Never raises: a broken connection is made anew next time."""
        if seconds <= 0:
            return
        started = time.monotonic()
        try:
            raw = self._listening()
            if raw is None:
                time.sleep(seconds)
                return
            select.select([raw.fileno()], [], [], seconds)
            raw.pgconn.consume_input()
            while raw.pgconn.notifies() is not None:
                pass
        except (DatabaseError, OSError, ValueError, _psycopg_error()):
            self.close()
            time.sleep(max(0.0, seconds - (time.monotonic() - started)))

    def _listening(self) -> Any:
        template = connections[self.alias]
        if template.vendor != "postgresql":
            return None
        if self._connection is None:
            connection: Any = template.copy()
            connection.ensure_connection()
            if not hasattr(connection.connection, "pgconn"):
                connection.close()
                return None
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            self._connection = connection
        return self._connection.connection

    def close(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            except DatabaseError:
                pass
        self._connection = None


def _psycopg_error() -> type[Exception]:
    try:
        from psycopg import Error
    except ImportError:
        return DatabaseError
    return Error
