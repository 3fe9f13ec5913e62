"""How a race is brought about: who waits for a lock is seen in the database to wait, before the other lets go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from django.db import connection, connections, transaction

from tests.runtimes.cluster import until

row_locks = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one lock for all writers: nobody waits for a row"
)

AWAITED = {
    # pg_stat_activity would not do: a transaction sees it as it was when it first looked.
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))",
    "mysql": "SELECT count(*) FROM information_schema.innodb_lock_waits JOIN information_schema.innodb_trx "
    "ON trx_id = blocking_trx_id WHERE trx_mysql_thread_id = CONNECTION_ID()",
}


def a_lock_is_awaited() -> bool:
    """Say whether somebody waits for a lock that this connection holds."""
    if connection.vendor == "mysql":
        time.sleep(0.15)  # InnoDB's tables show nothing new to who looks again within 0.1 s
    with connection.cursor() as cursor:
        cursor.execute(AWAITED[connection.vendor])
        return bool(cursor.fetchone()[0])


class Behind:
    """Somebody in a thread and on a connection of his own, whose statement waits for a lock that we hold."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.said: Any = None
        self.raised: BaseException | None = None
        self._act = act
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(a_lock_is_awaited, 20, "The other's wait for our lock")
        assert self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.said = self._act()
        except BaseException as error:
            self.raised = error
        finally:
            connections.close_all()

    def end(self) -> Any:
        """Wait for its end, after we let go; return what the act returned."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.raised is not None:
            raise self.raised
        return self.said


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
