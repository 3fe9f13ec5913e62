"""Forking: a child process must not touch the database connections of its parent.

Two processes cannot use one socket to the database, and closing it in the child (or letting the garbage collector do
so) ends the parent's session. So the child keeps the inherited connections unclosed, and connects again on first use.
Modules with state per thread reset it in their own fork hooks.

SQLite needs more. Its library records in memory which locks the process has on a file. A fork copies that record, but
not the locks. So the child's own connections would rely on locks that do not exist, and another process that closes the
database could remove the log that they use (https://www.sqlite.org/howtocorrupt.html, 2.6). Therefore the parent closes
its SQLite connections before it forks. If it cannot (a transaction is open, or another thread uses the connection), a
child that connects to that file gets ``ForkedConnectionError``.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from ..exceptions import ForkedConnectionError

SQLITE_LOCK_WAIT_SECONDS = 5.0
"""How long a fork waits for a thread of the engine that is using SQLite."""

sqlite_in_use = threading.Lock()
"""Held by a background thread of the engine while it has a connection to SQLite, which it closes before the release."""

_inherited: list[Any] = []
"""Connections of the parent; kept, so that the garbage collector does not close them."""
_opened: weakref.WeakSet[BaseDatabaseWrapper] = weakref.WeakSet()
"""The connections to SQLite files that this process has opened, in any thread."""
_open_at_fork: set[str] = set()
"""The SQLite files that were open when this process was forked."""
_is_connected = False


def connect_fork_hook() -> None:
    """Register the fork hooks once: they cannot be removed, and ``ready()`` may run again."""
    global _is_connected
    if not _is_connected:
        _is_connected = True
        _register_hooks()


def _register_hooks() -> None:
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
    connection_created.connect(_note_or_refuse, dispatch_uid="django_ai.automation.fork")


def _before() -> None:
    sqlite_in_use.acquire(timeout=SQLITE_LOCK_WAIT_SECONDS)
    for connection in connections.all(initialized_only=True):
        if _file_of(connection) and connection.connection is not None and not connection.in_atomic_block:
            connection.close()


def _in_parent() -> None:
    if sqlite_in_use.locked():
        sqlite_in_use.release()


def _in_child() -> None:
    global sqlite_in_use
    sqlite_in_use = threading.Lock()
    for connection in list(_opened):
        if connection.connection is not None:
            _inherited.append((connection, connection.connection))
            _open_at_fork.add(_file_of(connection))
    _opened.clear()
    abandon_inherited_connections()


def abandon_inherited_connections() -> None:
    """Forget the connections of this thread without closing them."""
    for connection in connections.all(initialized_only=True):
        if _is_in_memory(connection):
            continue  # the fork has copied the database itself
        _inherited.append((connection, connection.connection))
        del connections[connection.alias]
        pools = getattr(type(connection), "_connection_pools", None)
        if pools:
            _inherited.append(dict(pools))
            pools.clear()


def _note_or_refuse(sender: Any, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    file = _file_of(connection)
    if not file:
        return
    if file in _open_at_fork:
        connection.close()
        raise ForkedConnectionError(
            f"This process ({os.getpid()}) was forked while its parent had a connection to {file} that could not be "
            "closed: a transaction was open, or another thread was using it. SQLite's locks do not survive a fork, so "
            "using the file here could corrupt it. Fork outside of transaction.atomic() (a step with atomic=False), "
            "start the process with multiprocessing's 'spawn' method, or use PostgreSQL or MariaDB."
        )
    _opened.add(connection)


def _file_of(connection: BaseDatabaseWrapper) -> str:
    """Return the file of a connection to SQLite, or an empty string."""
    if connection.vendor != "sqlite" or _is_in_memory(connection):
        return ""
    return str(Path(str(connection.settings_dict["NAME"])).absolute())


def _is_in_memory(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())  # type: ignore[attr-defined]
