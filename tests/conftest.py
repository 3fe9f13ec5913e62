"""What every test may use: a stopped clock, a worker, and registries that forget what the test declared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management.commands import flush
from django.db import connection
from django.utils import timezone

from django_ai.automation.agents import definitions as agent_definitions
from django_ai.automation.events import callbacks, declarations
from django_ai.automation.queues import maintenance
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.worker_status import worker_status
from django_ai.automation.workflows import definitions as workflow_definitions

STEP = timedelta(microseconds=int(os.environ.get("TEST_CLOCK_STEP", "0")))
"""By how much a stopped clock goes on at each reading: a clock that stands hides races."""


class StoppedClock:
    """``timezone.now`` of the whole process, which stands until the test moves it (but for ``STEP``)."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        self.now += STEP
        return self.now

    def tick(self, by: timedelta) -> datetime:
        self.now += by
        return self.now


KEPT = {"django_content_type", "auth_permission"}


@pytest.fixture(scope="session", autouse=True)
def quick_flush() -> Iterator[None]:
    """Empty the tables after a test in a few milliseconds. With TRUNCATE, which makes a new file for each table, and
    with content types and permissions made anew each time, it takes longer than most tests do."""
    flush_of = type(connection.ops).sql_flush

    def sql_flush(ops: Any, style: Any, tables: list[str], **kwargs: Any) -> list[str]:
        tables = [table for table in tables if table not in KEPT]
        if connection.vendor == "postgresql":
            return [f"DELETE FROM {ops.quote_name(table)}" for table in tables]
        return flush_of(ops, style, tables, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(connection.ops), "sql_flush", sql_flush)
        patch.setattr(flush, "emit_post_migrate_signal", lambda *args, **kwargs: None)
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    """Stop the clock at noon (UTC) of a Monday in winter."""
    stopped = StoppedClock(datetime(2030, 1, 7, 12, tzinfo=UTC))
    monkeypatch.setattr(timezone, "now", stopped)
    return stopped


@pytest.fixture(autouse=True)
def unattended() -> None:
    """Forget that the rows of maintenance were there: a test begins without them."""
    maintenance._next_row_check.clear()


@pytest.fixture
def work() -> Callable[..., int]:
    """Perform all that is due, as a worker does: ``work()`` now, ``work(moment)`` at another moment."""

    def perform(now: datetime | None = None) -> int:
        return drain(now)

    return perform


@pytest.fixture(autouse=True)
def no_worker() -> Iterator[None]:
    """Let no test make a worker of the process that runs the next ones."""
    yield
    worker_status.reset()


@pytest.fixture(autouse=True)
def own_definitions() -> Iterator[None]:
    """Forget the workflows, agents and callbacks that a test declares, and bring back those that it took away."""
    kept = [
        (callbacks, callbacks.all_callbacks),
        (agent_definitions, agent_definitions.all_agents),
        (workflow_definitions, workflow_definitions.all_workflows),
    ]
    before = [(module, declared, declared()) for module, declared in kept]
    yield
    for module, declared, known in before:
        for each in declared():
            module.unregister(each)
        for each in known:
            module.register(each)


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``declare(Model, definition, ...)``: give a model that declares events other ones, for one test."""

    def replace(model: type, *definitions: object) -> None:
        monkeypatch.setattr(model, "events", list(definitions))
        declarations.forget_declarations()

    yield replace
    monkeypatch.undo()
    declarations.forget_declarations()
