"""How a race is brought about: who waits for a lock is seen in the database to wait, before the other lets go."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from django.db import connection, transaction

from tests.runtimes.cluster import until
from tests.trouble import Together, someone_waits_for_us

row_locks = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one lock for all writers: nobody waits for a row"
)


class Behind(Together):
    """Somebody in a thread and on a connection of his own, whose statement waits for a lock that we hold."""

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
