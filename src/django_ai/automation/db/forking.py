"""What a forked child must not touch: the connections of its parent.

A socket to the database that two processes write to is of use to neither, and closing it in the child (or letting the
garbage collector do so) ends the parent's session. So the child puts what it inherited aside, unclosed, and connects
for itself when it first asks. Modules that keep something for each thread forget it in hooks of their own.

SQLite needs more. Its library keeps in memory which locks the process has on a file, a fork copies that, but not the
locks: the child's own connections would rely on locks that nobody has, and another process that closes the database
would take itself for the last one and remove the log under them (https://www.sqlite.org/howtocorrupt.html, 2.6). So the
parent closes its SQLite connections before it forks. Where it cannot (a transaction is open, or another thread uses the
connection), a child that connects to that file is refused with ``ForkedConnectionError``.
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

SECONDS_TO_WAIT = 5.0
"""How long a fork waits for a thread of ours that is just using SQLite."""

sqlite_in_use = threading.Lock()
"""Held by a thread of ours beside the work while it has a connection to SQLite, which it closes before it lets go."""

_inherited: list[Any] = []
"""What belongs to the parent: kept, so that nothing closes it."""
_opened: weakref.WeakSet[BaseDatabaseWrapper] = weakref.WeakSet()
"""The connections to SQLite files that this process has made, in any thread."""
_open_at_fork: set[str] = set()
"""Files that were open when this process was forked."""


_is_connected = False


def connect_fork_hook() -> None:
    """Register the hooks: once, for they cannot be taken back, and apps may be made ready again."""
    global _is_connected
    if not _is_connected:
        _is_connected = True
        _register_hooks()


def _register_hooks() -> None:
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
    connection_created.connect(_note_or_refuse, dispatch_uid="django_ai.automation.fork")


def _before() -> None:
    sqlite_in_use.acquire(timeout=SECONDS_TO_WAIT)
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
            continue  # the child has a copy of the database itself
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
            "closed: a transaction was open, or another thread used it. SQLite's locks do not survive a fork, and to "
            "use the file here could corrupt it. Fork outside of transaction.atomic() (a step with atomic=False), "
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
