"""SQLite has no NOTIFY: a sleep that ends when another connection, of any process, has committed.

``PRAGMA data_version`` is the truth: it changes with each commit of another connection, by whatever program, and not
with those of the connection that asks. It is asked on the connection of the calling thread, which has just polled. So
there is no further connection that a fork could copy, and what a worker commits itself does not wake it.

Asking every few milliseconds would keep a processor busy. So on Linux the sleep first waits for inotify to report that
the database or its write-ahead log was written to, and asks then. A report comes before the commit is visible, which
may have to wait for the disk: the sleep continues to ask at short intervals for a while. Elsewhere, and where inotify
has no room left, it asks at fixed intervals.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from typing import Any

from django.db import Error as DatabaseFailure
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .inotify import Inotify
from .sleeping import is_readable, pause

CHECK_INTERVAL_SECONDS = 0.025
"""Without inotify: interval between two looks at ``data_version``."""
FIRST_CHECK_SECONDS = 0.001
"""After a file was written to: interval before the next look. It doubles each time."""
MAX_CHECK_SECONDS = 0.02
SETTLE_SECONDS = 0.5
"""For how long after the last write to a file its commit is expected. A later one is found by the next poll."""
QUIET_SECONDS = 0.004
"""How long the files must not have been written to before a commit ends the sleep. A ``save()`` and what follows from
it are several commits in a row, and a worker that came in between would compete for the one write lock ..."""
MAX_QUIET_WAIT_SECONDS = 0.02
"""... but it is not waited for longer than this."""


class SqliteCommits:
    """Waits for the commits of other connections to the SQLite database ``alias``.

    It needs the connection that the calling thread keeps open while it sleeps. Without one (a process that forks closes
    it after each poll), in a transaction, and with a database in memory, it only sleeps.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._raw: Any = None
        self._path = ""
        self._identity: tuple[int, int] | None = None
        self._version = 0
        self._inotify: Inotify | None = None
        self._owner = 0

    def prepare(self) -> None:
        """Remember what is committed now. To be called before a poll: ``wait`` reports what is committed afterwards.

        Raises:
            django.db.Error: The database failed.
        """
        connection = connections[self.alias]
        connection.ensure_connection()
        if connection.connection is not self._raw:
            with connection.wrap_database_errors:
                self._start(connection)

    def wait(self, seconds: float, file: int | None = None) -> bool:
        """Sleep for ``seconds``, until another connection has committed, or until ``file`` is readable.
        Return whether another connection has committed. Never raises."""
        end = time.monotonic() + seconds
        connection: Any = connections[self.alias]
        try:
            if self._can_ask(connection):
                return self._wait(connection, end, file)
        except (OSError, ValueError, DatabaseFailure, connection.Database.Error):
            self.close()
        pause(end - time.monotonic(), file)
        return False

    def sleep(self, seconds: float, file: int | None = None) -> None:
        """Sleep for ``seconds`` despite commits, which ``wait`` does not report any more. Never raises."""
        pause(seconds, file)
        connection: Any = connections[self.alias]
        with suppress(connection.Database.Error):
            if self._can_ask(connection):
                self._has_changed()

    def close(self) -> None:
        """Release what the waiting needs. The connection stays open."""
        inotify, self._inotify, self._raw = self._inotify, None, None
        if inotify is not None:
            inotify.close()  # a process that was forked closes only its own copy

    def _start(self, connection: BaseDatabaseWrapper) -> None:
        raw: Any = connection.connection
        paths = [path for _, name, path in raw.execute("PRAGMA database_list").fetchall() if name == "main"]
        self._path = paths[0] if paths else ""
        self._identity = _identity(self._path)
        self._version = _data_version(raw)
        self._raw = raw

    def _can_ask(self, connection: BaseDatabaseWrapper) -> bool:
        raw: Any = connection.connection
        return raw is not None and raw is self._raw and bool(self._path) and not raw.in_transaction

    def _wait(self, connection: BaseDatabaseWrapper, end: float, file: int | None) -> bool:
        if self._is_replaced():
            connection.close()  # it would read the old file forever
            return True
        inotify = self._watching()
        if not self._wait_for_commit(inotify, end, file):
            return False
        latest = time.monotonic() + MAX_QUIET_WAIT_SECONDS
        while time.monotonic() < latest:
            pause(QUIET_SECONDS, file)
            if not (self._has_changed() if inotify is None else inotify.take()):
                break
        self._has_changed()  # the poll that follows sees all of them
        return True

    def _wait_for_commit(self, inotify: Inotify | None, end: float, file: int | None) -> bool:
        if self._has_changed():
            return True
        settled_at = interval = 0.0
        if inotify is not None and inotify.take():  # written by this thread, or by a commit that is not visible yet
            settled_at, interval = time.monotonic() + SETTLE_SECONDS, FIRST_CHECK_SECONDS
        while (left := end - (now := time.monotonic())) > 0:
            if inotify is None:
                pause(min(CHECK_INTERVAL_SECONDS, left), file)
            elif now < settled_at:
                pause(min(interval, left), file)
                interval = min(interval * 2, MAX_CHECK_SECONDS)
            else:
                select.select([inotify.fileno(), *([] if file is None else [file])], [], [], left)
                interval = FIRST_CHECK_SECONDS
            if is_readable(file):
                return False
            if inotify is not None and inotify.take():
                settled_at = time.monotonic() + SETTLE_SECONDS
            if self._has_changed():
                return True
        return False

    def _has_changed(self) -> bool:
        version = _data_version(self._raw)
        changed, self._version = version != self._version, version
        return changed

    def _is_replaced(self) -> bool:
        """Return whether another file has taken the place of the database. A file that was only deleted is kept: a new
        connection would create an empty one."""
        return _identity(self._path) not in (None, self._identity)

    def _watching(self) -> Inotify | None:
        """Return what reports writes to the files of the database, None where that is not possible."""
        if self._inotify is not None and self._owner != os.getpid():
            self._inotify.close()
            self._inotify = None  # reports would reach either this process or its parent
        try:
            if self._inotify is None:
                self._inotify, self._owner = Inotify(), os.getpid()
            self._inotify.add(self._path)
            with suppress(FileNotFoundError):  # without write-ahead log
                self._inotify.add(f"{self._path}-wal")
        except OSError:
            return None
        return self._inotify


def _data_version(raw: Any) -> int:
    """Return the version of the data. Django's own cursor would log the query, and show it to tests that count."""
    ((version,),) = raw.execute("PRAGMA data_version").fetchall()
    return int(version)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
