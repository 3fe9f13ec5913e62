"""Retrying after a deadlock: a transaction of our own is repeated; inside the caller's transaction the caller decides.

On MariaDB two inserts of the same unique key, or an insert next to a delete, can deadlock although both lock rows in
the same order (https://mariadb.com/kb/en/innodb-lock-modes/). Code that spawns or ends an agent should not have to
handle that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.db import OperationalError, connections

R = TypeVar("R")
MAX_ATTEMPTS = 10


def retry_on_deadlock(alias: str, work: Callable[[], R]) -> R:
    """Return what ``work`` returns; call it again if a deadlock has rolled it back. Inside an ``atomic`` block it is
    called once, because only the caller can repeat that transaction."""
    connection, attempts_left = connections[alias], MAX_ATTEMPTS
    while True:
        attempts_left -= 1
        try:
            return work()
        except OperationalError as error:
            if connection.in_atomic_block or not attempts_left or not is_deadlock(error):
                raise


def is_deadlock(error: OperationalError) -> bool:
    """Return whether the database has rolled this transaction back to end a deadlock."""
    cause: Any = error.__cause__
    return getattr(cause, "sqlstate", None) in ("40P01", "40001") or getattr(cause, "args", ())[:1] == (1213,)
