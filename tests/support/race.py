"""Races: work in threads with their own connections, and locks that the database shows to be waited for.

A session that is to wait for a lock is seen in the database to wait, before the other one lets go.
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
from tests.support.polling import until

row_locks = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one lock for all writers: nobody waits for a row"
)


class Together:
    """Work in a thread of its own, with a database connection of its own."""

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
        """Wait for the end, and return what the work returned, or raise what it raised."""
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
    """Say whether some session of this database waits for a lock of another: asked of the server, not guessed."""
    return _is_there(WAITING)


def someone_waits_for_us() -> bool:
    """Say whether somebody waits for a lock that this connection holds."""
    return _is_there(WAITING_FOR_US)


def _is_there(queries: dict[str, str]) -> bool:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction sees the activity of its first look
        else:
            # InnoDB shows the same picture again to whoever asks within a tenth of a second of the last look.
            time.sleep(0.15)
        cursor.execute(queries[connection.vendor])
        return bool(cursor.fetchone()[0])


def until_someone_waits() -> None:
    until(someone_waits, 30, "A session that waits for a lock")


class Behind(Together):
    """Another session, in a thread of its own, whose statement waits for a lock that we hold."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(act)
        until(someone_waits_for_us, 20, "The other's wait for our lock")
        assert self.is_running


def then_before_the_commit(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, act: Callable[[], Behind]
) -> list[Behind]:
    """Let somebody come behind us between the first call of a named function and the commit of what it wrote."""
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
    """Run ``works`` at the same time, each in a thread of its own; return what they raised."""
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
    return raised


def together_with_workers(*works: Callable[[], object], workers: int = 3) -> list[BaseException]:
    """Run ``works`` at the same time, and beside them workers until all is done; return what they raised."""
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
    """Do something in another thread, on a connection of its own, and wait for its end."""
    assert together(act) == []


def once(monkeypatch, module, name, before=None, after=None):
    """Let somebody else act before or after the first call of a named function."""
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
