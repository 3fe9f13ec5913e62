"""How a race is brought about: who waits for a lock is seen in the database to wait, before the other lets go."""

from __future__ import annotations

import threading
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
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND wait_event_type = 'Lock'",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}


def a_lock_is_awaited() -> bool:
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
