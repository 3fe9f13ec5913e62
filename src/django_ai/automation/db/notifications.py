"""What wakes an idle worker: NOTIFY and LISTEN on PostgreSQL, and each commit on SQLite. On MariaDB it only polls.

A NOTIFY names the kinds and queues of the rows that became due, so that workers of others continue to sleep.

A pooler in transaction mode (PgBouncer) gives each transaction another session, so a LISTEN there receives nothing: a
worker behind one detects that and only polls. NOTIFY works through a pooler like any other statement.
"""

from __future__ import annotations

import logging
import re
import select
import time
from collections.abc import Callable, Collection
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from .connections import dedicated_connection, is_pooled
from .sleeping import is_readable, pause
from .sqlite_commits import SqliteCommits

logger = logging.getLogger("django_ai.automation")

CHANNEL = "django_ai_automation"
RELISTEN_SECONDS = 1.0
"""After how many seconds a process that could not LISTEN tries again; until then it polls."""


_is_plain = re.compile(r"[A-Za-z0-9_:*,.-]*").fullmatch
"""Matches a payload that can stand in a statement as it is."""
MAX_PAYLOAD_BYTES = 7999
"""Longest payload that PostgreSQL accepts. A doorbell with more names rings for all processes."""


def notify(alias: str, names: Collection[str] = ()) -> None:
    """Wake the processes that LISTEN for one of ``names`` (empty: all processes). The commit does not wait for the
    disk, because it writes nothing else."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return
    payload = ",".join(sorted(names))
    if len(payload) > MAX_PAYLOAD_BYTES:
        payload = ""
    with connection.cursor() as cursor:
        if _is_plain(payload):  # the usual one, in half of the time
            cursor.execute(f"NOTIFY {CHANNEL}, '{payload}'")
        else:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])


class Listener:
    """A separate connection that LISTENs; on SQLite, what sees the commits of others. On MariaDB, without psycopg 3, or
    behind a pooler, it only sleeps. ``is_concerned``: whether a notification that names this wakes it (default: all
    do)."""

    def __init__(self, alias: str, is_concerned: Callable[[str], bool] = lambda name: True) -> None:
        self.alias = alias
        self.is_concerned = is_concerned
        self._heard: set[str] = set()
        self._connection: Any = None
        self._retry_at = 0.0
        self._commits: SqliteCommits | None = None

    @property
    def hears_every_commit(self) -> bool:
        """Whether ``wait`` also reports commits that made no row due, as on SQLite."""
        return self._commits is not None

    def prepare(self) -> None:
        """To be called before each poll: what is committed on SQLite from now on ends the next ``wait``.

        Raises:
            django.db.Error: The database failed.
        """
        if connections[self.alias].vendor == "sqlite":
            self._commits = self._commits or SqliteCommits(self.alias)
            self._commits.prepare()

    def wait(self, seconds: float, file: int | None = None) -> bool:
        """Sleep for ``seconds``, until a notification arrives, or until the file descriptor ``file`` is readable.
        Return whether a notification arrived.

        Never raises: it reconnects a broken connection a little later.
        """
        if seconds <= 0:
            return False
        if self._commits is not None:
            return self._commits.wait(seconds, file)
        started = time.monotonic()
        was_listening = self._connection is not None
        try:
            raw = self._listening()
            if raw is not None and not was_listening:
                return False  # earlier notifications were missed: the caller polls once more before it sleeps
            if raw is None:
                pause(seconds, file)
                return False
            while True:
                left = seconds - (time.monotonic() - started)
                if self._receive(raw):
                    return True
                if left <= 0 or is_readable(file):
                    return False
                select.select([raw.fileno(), *([] if file is None else [file])], [], [], left)
        except (DatabaseError, InterfaceError, OSError, ValueError, _psycopg_error()):
            self.close()
            self._retry_at = time.monotonic() + RELISTEN_SECONDS
            pause(seconds - (time.monotonic() - started), file)
        return False

    def sleep(self, seconds: float, file: int | None = None) -> None:
        """Sleep for ``seconds`` despite notifications, and discard those that have arrived by then. Never raises."""
        if self._commits is not None:
            self._commits.sleep(seconds, file)
            return
        pause(seconds, file)
        try:
            if self._connection is not None:
                self._receive(self._connection.connection)
        except (DatabaseError, InterfaceError, OSError, ValueError, _psycopg_error()):
            self.close()

    @property
    def has_heard(self) -> bool:
        return bool(self._heard)

    def take_heard(self) -> set[str]:
        """Return the names in the notifications for this process that were received since the last call. An empty one
        means that a notification named nothing."""
        heard, self._heard = self._heard, set()
        return heard

    def receive(self) -> bool:
        """Receive the notifications that have arrived; return whether one is for this process that was not taken or
        discarded. Never raises."""
        try:
            if self._connection is not None:
                self._receive(self._connection.connection)
        except (DatabaseError, InterfaceError, OSError, ValueError, _psycopg_error()):
            self.close()
        return bool(self._heard)

    def discard(self) -> None:
        """Discard the notifications that have arrived: what they are about is about to be read. Never raises."""
        try:
            if self._connection is not None:
                self._receive(self._connection.connection)
                self._heard.clear()
        except (DatabaseError, InterfaceError, OSError, ValueError, _psycopg_error()):
            self.close()

    def _receive(self, raw: Any) -> bool:
        """Receive the notifications that have arrived; return whether one is for this process."""
        raw.pgconn.consume_input()
        is_relevant = False
        while (notification := raw.pgconn.notifies()) is not None:
            names = notification.extra.decode().split(",")
            relevant = [name for name in names if not name or self.is_concerned(name)]
            self._heard.update(relevant)
            is_relevant = is_relevant or bool(relevant)
        return is_relevant

    def _listening(self) -> Any:
        if self._connection is not None:
            return self._connection.connection
        if connections[self.alias].vendor != "postgresql" or time.monotonic() < self._retry_at:
            return None
        connection: Any = dedicated_connection(self.alias)
        try:
            connection.ensure_connection()
            if not hasattr(connection.connection, "pgconn"):
                self._retry_at = float("inf")
            elif is_pooled(connection):
                self._retry_at = float("inf")
                logger.info("The database %r is behind a pooler: this process polls and does not LISTEN.", self.alias)
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
        """Close the connection that LISTENs; the next ``wait`` opens a new one."""
        if self._commits is not None:
            self._commits.close()
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
