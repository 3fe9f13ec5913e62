"""``ConnectionSlots``: how many connections the threads of one process may have open at the same time.

A process with a hundred threads must not open a hundred connections: most of its threads wait for something else than
the database. So a connection of such a thread takes a slot when it connects, waits for one if none is free, and gives
it back when it is closed. While more than half of the slots are taken, an attempt without a transaction runs its user
code without a connection (``frees_connection``); code that uses the ORM connects again.
"""

from __future__ import annotations

import threading
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

_MARK = "automation_slots"
DEFAULT_POOL_SIZE = 4
"""How many connections a pool of psycopg has, unless its options say otherwise."""


class ConnectionSlots:
    """The slots of one process. Thread-safe.

    Args:
        limit: How many connections may be open at the same time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._free = threading.Condition()

    @property
    def are_scarce(self) -> bool:
        """Whether more than half of the slots are taken."""
        return 2 * self.taken > self.limit

    def bind(self, connection: BaseDatabaseWrapper) -> None:
        """Let ``connection``, which is closed, and which only this thread uses, take a slot while it is open."""
        driver: Any = connection
        connect, close, holds = driver.connect, driver._close, False

        def connect_in_slot() -> None:
            nonlocal holds
            if not holds:
                self._take()
                holds = True
            try:
                connect()
            except BaseException:
                if connection.connection is None:
                    give_back()
                raise

        def close_and_give_back() -> Any:
            try:
                return close()
            finally:
                give_back()

        def give_back() -> None:
            nonlocal holds
            if holds:
                holds = False
                self._give_back()

        # Django calls both on the instance, also where it reconnects without being asked to.
        connection.__dict__.update({"connect": connect_in_slot, "_close": close_and_give_back, _MARK: self})

    def _take(self) -> None:
        with self._free:
            self._free.wait_for(lambda: self.taken < self.limit)
            self.taken += 1

    def _give_back(self) -> None:
        with self._free:
            self.taken -= 1
            self._free.notify()


def within_pool(connection: BaseDatabaseWrapper, limit: int) -> int:
    """Return ``limit``, or fewer if psycopg's pool is smaller: one connection is left to the main thread. A thread that
    waits for the pool fails after its timeout, and a step without a transaction would then be repeated."""
    pool = connection.settings_dict.get("OPTIONS", {}).get("pool")
    if not pool:
        return limit
    given = pool if isinstance(pool, dict) else {}
    size = int(given.get("max_size") or given.get("min_size", DEFAULT_POOL_SIZE))
    return max(min(limit, size - 1), 1)


def frees_connection(connection: BaseDatabaseWrapper) -> bool:
    """Return whether user code that needs no transaction should run without this connection."""
    slots: ConnectionSlots | None = getattr(connection, _MARK, None)
    return slots is not None and slots.are_scarce and not connection.in_atomic_block
