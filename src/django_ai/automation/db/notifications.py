"""NOTIFY and LISTEN on PostgreSQL: how a commit wakes an idle worker. Elsewhere a worker only sleeps.

A NOTIFY names the kinds of rows that became due, so that a worker of other kinds sleeps on.

A pooler in transaction mode (PgBouncer) gives each transaction another session, so what LISTENs there hears nothing:
a worker behind one notices it and only polls. NOTIFY goes through a pooler as any statement does.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Collection
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from .connections import dedicated_connection

logger = logging.getLogger("django_ai.automation")

CHANNEL = "django_ai_automation"
AGAIN = 1.0
"""Seconds after which a process that could not LISTEN tries it again; until then it polls."""


def notify(alias: str, queues: Collection[str] = ()) -> None:
    """Wake whoever LISTENs on PostgreSQL for one of ``queues`` (none: whoever LISTENs). Its commit need not wait for
    the disk: a lost NOTIFY loses nothing."""
    connection = connections[alias]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, %s)",
                [CHANNEL, ",".join(sorted(queues))],
            )


class Listener:
    """A connection of its own that LISTENs; without PostgreSQL and psycopg 3, or behind a pooler, it only sleeps.
    ``queues``: the kinds of rows that it is rung for (default: all)."""

    def __init__(self, alias: str, queues: Collection[str] | None = None) -> None:
        self.alias = alias
        self.queues = queues
        self._connection: Any = None
        self._deaf_until = 0.0

    def wait(self, seconds: float, also: int | None = None) -> bool:
        """Sleep for ``seconds``, until somebody rings, or until the file descriptor ``also`` can be read; return
        whether somebody rang.

        Never raises: a broken connection is made anew, a little later.
        """
        if seconds <= 0:
            return False
        started = time.monotonic()
        was_listening = self._connection is not None
        try:
            raw = self._listening()
            if raw is not None and not was_listening:
                return False  # who rang before was not heard: look once more before the first sleep
            if raw is None:
                _pause(seconds, also)
                return False
            while True:
                left = seconds - (time.monotonic() - started)
                if self._concerned(raw):
                    return True
                if left <= 0 or _can_be_read(also):
                    return False
                select.select([raw.fileno(), *([] if also is None else [also])], [], [], left)
        except (DatabaseError, InterfaceError, OSError, ValueError, _psycopg_error()):
            self.close()
            self._deaf_until = time.monotonic() + AGAIN
            _pause(seconds - (time.monotonic() - started), also)
        return False

    def rest(self, seconds: float, also: int | None = None) -> None:
        """Sleep for ``seconds``, whoever rings; what has rung by then is heard. Never raises."""
        _pause(seconds, also)
        try:
            if self._connection is not None:
                self._concerned(self._connection.connection)
        except (DatabaseError, InterfaceError, OSError, ValueError, _psycopg_error()):
            self.close()

    def _concerned(self, raw: Any) -> bool:
        """Take what has arrived; return whether some of it is for us."""
        raw.pgconn.consume_input()
        concerned = False
        while (found := raw.pgconn.notifies()) is not None:
            named = found.extra.decode()
            concerned = (
                concerned or not named or self.queues is None or not set(self.queues).isdisjoint(named.split(","))
            )
        return concerned

    def _listening(self) -> Any:
        if self._connection is not None:
            return self._connection.connection
        if connections[self.alias].vendor != "postgresql" or time.monotonic() < self._deaf_until:
            return None
        connection: Any = dedicated_connection(self.alias)
        try:
            connection.ensure_connection()
            if not hasattr(connection.connection, "pgconn"):
                self._deaf_until = float("inf")
            elif _is_pooled(connection):
                self._deaf_until = float("inf")
                logger.info(
                    "A pooler stands before the database %r: this process polls, and does not LISTEN.", self.alias
                )
            else:
                with connection.cursor() as cursor:
                    cursor.execute(f"LISTEN {CHANNEL}")
                self._connection = connection
                return connection.connection
        finally:
            if self._connection is None:
                connection.close()
        return None

    def close(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            except DatabaseError:
                pass
        self._connection = None


def _can_be_read(file: int | None) -> bool:
    return file is not None and bool(select.select([file], [], [], 0)[0])


def _pause(seconds: float, also: int | None) -> None:
    if seconds > 0:
        if also is None:
            time.sleep(seconds)
        else:
            select.select([also], [], [], seconds)


def _is_pooled(connection: Any) -> bool:
    """Say whether the server process that answers is another than the one that the driver was told of."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (answering,) = cursor.fetchone()
    return bool(answering != connection.connection.pgconn.backend_pid)


def _psycopg_error() -> type[Exception]:
    try:
        from psycopg import Error
    except ImportError:
        return DatabaseError
    return Error
