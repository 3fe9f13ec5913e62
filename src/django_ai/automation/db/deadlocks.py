"""Once more after a deadlock: one transaction of ours is repeated, what is part of the caller's is the caller's.

On MariaDB two inserts of one unique key, or an insert beside a delete, can deadlock although both do all in one order
(https://mariadb.com/kb/en/innodb-lock-modes/); a person who spawns or ends an agent should not be told of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.db import OperationalError, connections

R = TypeVar("R")
TRIES = 10


def retry_on_deadlock(alias: str, work: Callable[[], R]) -> R:
    """Return what ``work`` returns; call it again where a deadlock has rolled it back. Inside an ``atomic`` block it is
    called once, because its transaction is not ours to repeat."""
    connection, tries = connections[alias], TRIES
    while True:
        tries -= 1
        try:
            return work()
        except OperationalError as error:
            if connection.in_atomic_block or not tries or not is_deadlock(error):
                raise


def is_deadlock(error: OperationalError) -> bool:
    """Say whether the database has chosen this transaction to end a deadlock, and rolled it back."""
    cause: Any = error.__cause__
    return getattr(cause, "sqlstate", None) in ("40P01", "40001") or getattr(cause, "args", ())[:1] == (1213,)
