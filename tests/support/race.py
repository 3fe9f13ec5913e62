"""Races: work in threads with their own connections, and locks whose waiting sessions the database reports.

A test holds a lock until the database reports that the other session waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_ai.automation.queues.drain import drain
from tests.support.marks import not_on
from tests.support.polling import until

row_locks = not_on("sqlite", reason="SQLite has one lock for all writers, so no session waits for a row")


class OtherThread:
    """Work in a separate thread with its own database connection."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        finally:
            connections.close_all()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float = 60) -> Any:
        """Wait for the thread, and return the result of the work or raise its exception."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "The thread did not end."
        if self.error is not None:
            raise self.error
        return self.result


WAITING = {
    "postgresql": "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
    "WHERE NOT l.granted AND a.datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}
WAITING_FOR_US = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))",
    "mysql": "SELECT count(*) FROM information_schema.innodb_lock_waits JOIN information_schema.innodb_trx "
    "ON trx_id = blocking_trx_id WHERE trx_mysql_thread_id = CONNECTION_ID()",
}


def someone_waits() -> bool:
    """Return whether the database server reports that a session of this database waits for a lock."""
    return _is_there(WAITING)


def someone_waits_for_us() -> bool:
    """Return whether another session waits for a lock that this connection holds."""
    return _is_there(WAITING_FOR_US)


def _is_there(queries: dict[str, str]) -> bool:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction keeps its first snapshot
        else:
            # InnoDB returns the same rows again to a query within a tenth of a second of the last one.
            time.sleep(0.15)
        cursor.execute(queries[connection.vendor])
        return bool(cursor.fetchone()[0])


def until_someone_waits() -> None:
    until(someone_waits, 30, "A session that waits for a lock")


class Behind(OtherThread):
    """Another session, in a separate thread, whose statement waits for a lock of this connection."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(act)
        until(someone_waits_for_us, 20, "The other's wait for our lock")
        assert self.is_running


def then_before_the_commit(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, act: Callable[[], Behind]
) -> list[Behind]:
    """Start another session between the first call of a function and the commit of what it wrote."""
    real = getattr(module, name)
    behind: list[Behind] = []

    def held(*arguments: Any, **options: Any) -> Any:
        if behind:
            return real(*arguments, **options)
        with transaction.atomic():
            result = real(*arguments, **options)
            behind.append(act())
        return result

    monkeypatch.setattr(module, name, held)
    return behind


def together(*works: Callable[[], object]) -> list[BaseException]:
    """Run ``works`` at the same time, each in its own thread, and return their exceptions."""
    barrier, raised = threading.Barrier(len(works)), []

    def run(work: Callable[[], object]) -> None:
        try:
            barrier.wait(10)
            work()
        except BaseException as error:
            raised.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "A thread did not end."
    return raised


def together_with_workers(*works: Callable[[], object], workers: int = 3) -> list[BaseException]:
    """Run ``works`` at the same time as workers that drain until all are done, and return the exceptions."""
    done = threading.Event()
    left = len(works)
    lock = threading.Lock()

    def counted(work: Callable[[], object]) -> None:
        nonlocal left
        try:
            work()
        finally:
            with lock:
                left -= 1
                if not left:
                    done.set()

    def worker() -> None:
        while not done.is_set():
            drain()
        drain()

    return together(*[partial(counted, work) for work in works], *[worker] * workers)


def elsewhere(act: Callable[[], object]) -> None:
    """Call ``act`` in another thread with its own connection, and wait until it returns."""
    assert together(act) == []


def once(monkeypatch, module, name, before=None, after=None):
    """Let another thread act before or after the first call of a function."""
    real = getattr(module, name)
    acted = []

    def wrapper(*arguments, **options):
        if acted:
            return real(*arguments, **options)
        acted.append(True)
        if before is not None:
            elsewhere(before)
        result = real(*arguments, **options)
        if after is not None:
            elsewhere(after)
        return result

    monkeypatch.setattr(module, name, wrapper)
    return acted
