"""What a forked child must not touch: the connections of its parent.

A socket to the database that two processes write to is of use to neither, and closing it in the child (or letting the
garbage collector do so) ends the parent's session. So the child puts what it inherited aside, unclosed, and connects
for itself when it first asks. Modules that keep something for each thread forget it in hooks of their own.
"""

from __future__ import annotations

import os
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

_inherited: list[Any] = []
"""What belongs to the parent: kept, so that nothing closes it."""


def connect_fork_hook() -> None:
    os.register_at_fork(after_in_child=put_connections_aside)


def put_connections_aside() -> None:
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


def _is_in_memory(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())  # type: ignore[attr-defined]
