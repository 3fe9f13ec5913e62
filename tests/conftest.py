"""Fixtures for all tests: a stopped clock, a worker, and the removal of definitions that a test declares."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from django.apps import apps
from django.core.management.commands import flush
from django.db import connection, connections
from django.utils import timezone

from django_ai.automation.agents import definitions as agent_definitions
from django_ai.automation.events import callbacks, declarations, free_events
from django_ai.automation.events.schedules import definitions as schedule_definitions
from django_ai.automation.queues import due, heartbeat, lanes, maintenance, pauses
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.worker_status import WorkerStatus, worker_status
from django_ai.automation.workflows import definitions as workflow_definitions
from tests.support import shares

STEP = timedelta(microseconds=int(os.environ.get("TEST_CLOCK_STEP", "0")))
"""How far a stopped clock advances at each reading. A clock that never advances hides races."""


class StoppedClock:
    """``timezone.now`` of the whole process. Apart from ``STEP``, it advances only when the test moves it."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        self.now += STEP
        return self.now

    def tick(self, by: timedelta) -> datetime:
        self.now += by
        return self.now


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the other shares (see ``tests.support.shares``), and skip those of other databases."""
    selected, others = [], []
    for item in items:
        marks = list(item.iter_markers("databases"))
        refusing = [mark for mark in marks if connection.vendor not in mark.args]
        if refusing:
            item.add_marker(pytest.mark.skip(reason=refusing[0].kwargs["reason"]))
        # A test that not all databases can run is in each share of those that can.
        mine = bool(marks and not refusing) or shares.is_in_share(item.nodeid, shares.share())
        (selected if mine and shares.is_in_share(item.nodeid, shares.part()) else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = selected


OUTBOX = "_capturedwrite"
KEPT = {"django_content_type", "auth_permission"}


def tables_with_rows(connection: Any) -> list[str]:
    """Return the tables of the models that have rows, with one query. The outbox comes last: triggers write to it what
    is deleted from captured tables."""
    models = [model for model in apps.get_models(include_auto_created=True) if model._meta.can_migrate(connection)]
    existing = _existing_tables(connection.alias)
    names = sorted({model._meta.db_table for model in models} & existing - KEPT, key=lambda name: name.endswith(OUTBOX))
    source = "" if connection.vendor != "mysql" else " FROM DUAL"
    quote = connection.ops.quote_name
    looks = [f"SELECT {at}{source} WHERE EXISTS (SELECT 1 FROM {quote(name)})" for at, name in enumerate(names)]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(looks))
        filled = {names[at] for (at,) in cursor.fetchall()}
    return [name for name in names if name in filled or (filled and name.endswith(OUTBOX))]


@cache
def _existing_tables(alias: str) -> frozenset[str]:
    connection = connections[alias]
    with connection.cursor() as cursor:
        return frozenset(connection.introspection.table_names(cursor))


@pytest.fixture(scope="session", autouse=True)
def quick_flush() -> Iterator[None]:
    """Empty the tables after a test in a few milliseconds.

    TRUNCATE creates a new file for each table, Django's flush reads the names of all tables, empties those that are
    empty, and creates content types and permissions again. Together that takes longer than most tests.
    """

    def sql_flush(style: Any, connection: Any, **kwargs: Any) -> list[str]:
        tables = tables_with_rows(connection)
        if connection.vendor == "postgresql":
            return [f"DELETE FROM {connection.ops.quote_name(table)}" for table in tables]
        return list(connection.ops.sql_flush(style, tables))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "sql_flush", sql_flush)
        patch.setattr(flush, "emit_post_migrate_signal", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_reports_from_the_heartbeat() -> Iterator[Callable[..., None]]:
    """Leave the reports of this process to the thread of the test, and yield the method that reports.

    The heartbeat's thread lives as long as the process. It could report between two statements of a test, or after its
    tables were emptied.
    """
    report = WorkerStatus.report

    def report_unless_beating(status: WorkerStatus, busy_lanes: Iterable[str] = ()) -> None:
        if threading.current_thread() is not heartbeat._thread:
            report(status, busy_lanes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerStatus, "report", report_unless_beating)
        yield report


@pytest.fixture
def heartbeat_reports(no_reports_from_the_heartbeat: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the heartbeat report in this test, as it does in a worker."""
    monkeypatch.setattr(WorkerStatus, "report", no_reports_from_the_heartbeat)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    """Stop the clock at noon (UTC) on a Monday in winter."""
    stopped = StoppedClock(datetime(2030, 1, 7, 12, tzinfo=UTC))
    monkeypatch.setattr(timezone, "now", stopped)
    return stopped


@pytest.fixture(autouse=True)
def unattended() -> None:
    """Clear the cached check of the maintenance rows, because each test starts without these rows."""
    maintenance._next_row_check.clear()


@pytest.fixture
def work() -> Callable[..., int]:
    """Run everything that is due, as a worker does: ``work()`` now, ``work(moment)`` at another moment."""

    def perform(now: datetime | None = None) -> int:
        return drain(now)

    return perform


@pytest.fixture(autouse=True)
def enabled_logger() -> Iterator[None]:
    """Fail a test that disables the logger of the package: a later test of what is logged would find nothing.
    ``logging.config`` disables every logger that exists, unless it is told otherwise."""
    yield
    logger = logging.getLogger("django_ai.automation")
    was_disabled, logger.disabled = logger.disabled, False
    assert not was_disabled, "the test has left the logger 'django_ai.automation' disabled: restore it"


@pytest.fixture(autouse=True)
def no_worker() -> Iterator[None]:
    """Reset the worker status, so that this process is no worker in the next test."""
    yield
    worker_status.reset()


@pytest.fixture(autouse=True)
def own_definitions() -> Iterator[None]:
    """Unregister the workflows, agents, callbacks, free events and events of other models that a test declares, and
    restore those that it removed."""
    kept = [
        (callbacks, callbacks.all_callbacks),
        (free_events, free_events.all_free_events),
        (schedule_definitions, schedule_definitions.all_schedules),
        (agent_definitions, agent_definitions.all_agents),
        (workflow_definitions, workflow_definitions.all_workflows),
    ]
    before = [(module, declared, declared()) for module, declared in kept]
    registered = dict(declarations.registered)
    yield
    if declarations.registered != registered:
        declarations.registered.clear()
        declarations.registered.update(registered)
        declarations.forget_declarations()
    lanes.reset()
    pauses.reset()
    due.reset()  # a slow scan is remembered for seconds, and the clock of the next test may be set back
    for module, declared, known in before:
        for each in declared():
            module.unregister(each)
        for each in known:
            module.register(each)


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``declare(Model, definition, ...)``: replace the events that a model declares, for one test."""

    def replace(model: type, *definitions: object) -> None:
        monkeypatch.setattr(model, "events", list(definitions))
        declarations.forget_declarations()

    yield replace
    monkeypatch.undo()
    declarations.forget_declarations()
