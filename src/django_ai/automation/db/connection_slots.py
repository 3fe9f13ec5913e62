"""``ConnectionSlots``: the connections that the threads of one process share, and how many may be open.

A process with a hundred threads must not open a hundred connections: most of its threads wait for something else than
the database. So a thread puts its connection down where it needs none (``put_down``), and the next thread that connects
continues with that session; a new one is opened only while fewer than ``limit`` are open, and else the thread waits. An
attempt without a transaction runs its user code without a connection (``frees_connection``); code that uses the ORM
takes one up. Only the driver's connection changes hands, between two statements and outside of a transaction: Django's
wrapper stays with its thread.

A session that was not left as it was is closed, and so is one that no thread has used for a while. SQLite's connections
and those of psycopg's pool are closed instead: the former are cheap, the latter are shared by the pool.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

_MARK = "automation_slots"
_all: weakref.WeakSet[ConnectionSlots] = weakref.WeakSet()
DEFAULT_POOL_SIZE = 4
"""How many connections a pool of psycopg has, unless its options say otherwise."""


@dataclass(frozen=True, slots=True)
class _Idle:
    """An open session that no thread uses. ``close_at``: when ``CONN_MAX_AGE`` ends, as Django computes it."""

    raw: Any
    close_at: float | None
    since: float


class ConnectionSlots:
    """The connections of one process. Thread-safe.

    Args:
        limit: How many connections may be open at the same time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._free = threading.Condition()
        self._idle: list[_Idle] = []
        _all.add(self)

    @property
    def are_scarce(self) -> bool:
        """Whether more than half of the connections are in use."""
        return 2 * self.taken > self.limit

    def bind(self, connection: BaseDatabaseWrapper) -> None:
        """Let ``connection``, which is closed, and which only this thread uses, take a slot while it is open."""
        driver: Any = connection
        connect, close, holds = driver.connect, driver._close, False

        def connect_in_slot() -> None:
            nonlocal holds
            if not holds:
                idle = self._take()
                holds = True
                if idle is not None:
                    _take_up(connection, idle)
                    return
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

        def put_down() -> None:
            nonlocal holds
            if not holds or not _is_as_new(connection) or _has_aged(connection):
                connection.close()
                return
            idle = _Idle(connection.connection, connection.close_at, time.monotonic())
            connection.connection, holds = None, False
            self._give_back(idle)

        # Django calls both on the instance, also where it reconnects without being asked to.
        connection.__dict__.update({"connect": connect_in_slot, "_close": close_and_give_back})
        connection.__dict__[_MARK] = (self, put_down if can_change_hands(connection) else connection.close)

    def close_idle(self, seconds: float = 0.0) -> None:
        """Close the connections that no thread has used for ``seconds``."""
        latest = time.monotonic() - seconds
        with self._free:
            old = [each for each in self._idle if each.since <= latest]
            self._idle = [each for each in self._idle if each.since > latest]
        for each in old:
            _close(each)

    def _take(self) -> _Idle | None:
        """Take a slot. Return the connection that was put down last, if one was and it still works."""
        with self._free:
            self._free.wait_for(lambda: self.taken < self.limit)
            self.taken += 1
            idle = self._idle.pop() if self._idle else None
        if idle is None or _is_open(idle):
            return idle
        _close(idle)
        self.close_idle()  # the server has ended this one, and so the others, too
        return None

    def _give_back(self, idle: _Idle | None = None) -> None:
        with self._free:
            self.taken -= 1
            if idle is not None:
                self._idle.append(idle)
            self._free.notify()


def can_change_hands(connection: BaseDatabaseWrapper) -> bool:
    """Return whether other threads may continue with the session of ``connection``."""
    return connection.vendor != "sqlite" and not connection.settings_dict.get("OPTIONS", {}).get("pool")


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
    """Return whether user code that needs no transaction should run without this connection. One that is closed, not
    put down, is kept until connections become scarce."""
    slots, _ = getattr(connection, _MARK, (None, None))
    return slots is not None and not connection.in_atomic_block and (can_change_hands(connection) or slots.are_scarce)


def put_down(connection: BaseDatabaseWrapper) -> None:
    """Let another thread continue with the session of ``connection``, which this one does not need now. A connection
    that belongs to no ``ConnectionSlots`` is closed."""
    _, put = getattr(connection, _MARK, (None, connection.close))
    put()


def _take_up(connection: BaseDatabaseWrapper, idle: _Idle) -> None:
    """Set on Django's wrapper what ``connect`` sets, for a session that is open and in its first state."""
    connection.in_atomic_block = connection.needs_rollback = connection.closed_in_transaction = False
    connection.savepoint_ids, connection.atomic_blocks, connection.run_on_commit = [], [], []
    connection.errors_occurred, connection.autocommit = False, connection.settings_dict["AUTOCOMMIT"]
    connection.close_at, connection.connection = idle.close_at, idle.raw
    connection.__dict__["health_check_done"] = True


def _is_as_new(connection: BaseDatabaseWrapper) -> bool:
    """Return whether no transaction is open, and nothing has failed."""
    raw: Any = connection.connection
    if raw is None or connection.in_atomic_block or connection.errors_occurred or connection.run_on_commit:
        return False
    if connection.autocommit != connection.settings_dict["AUTOCOMMIT"]:
        return False
    return connection.vendor != "postgresql" or bool(raw.info.transaction_status.name == "IDLE")


def _has_aged(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the session is older than ``CONN_MAX_AGE``. Zero means that Django keeps none between two
    requests; here that is one that no thread uses."""
    close_at = connection.close_at
    return close_at is not None and bool(connection.settings_dict["CONN_MAX_AGE"]) and time.monotonic() >= close_at


def _is_open(idle: _Idle) -> bool:
    """Return whether the server has not ended the session meanwhile. Else the result of user code that ran without a
    connection could not be written, and the code would run again."""
    try:
        if hasattr(idle.raw, "ping"):
            idle.raw.ping()
            return True
        if idle.raw.closed:
            return False
        poll = select.poll()  # not select(), which accepts no descriptor above 1023
        poll.register(idle.raw.fileno(), select.POLLIN)
        return not poll.poll(0)  # nothing to read, neither the end nor a message
    except Exception:
        return False


def _close(idle: _Idle) -> None:
    with suppress(Exception):
        idle.raw.close()


_inherited: list[_Idle] = []
"""Sessions of the parent process; kept, so that the garbage collector does not close them."""


def _after_fork() -> None:
    for slots in list(_all):
        _inherited.extend(slots._idle)
        slots.taken, slots._idle, slots._free = 0, [], threading.Condition()


os.register_at_fork(after_in_child=_after_fork)
