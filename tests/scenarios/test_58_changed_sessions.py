"""Scenario 58: user code changes the database session that it shares with the engine.

It changes settings, autocommit or the isolation level, or leaves a transaction open. The session is restored before
the engine's next statement.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (  # fmt: skip
    EventDefinition,
    Retry,
    agent,
    complete,
    engine,
    event_workflow,
    goto,
    handler,
    on_event,
    on_fail,
    step,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.db import session
from django_ai.automation.queues.drain import drain, draining
from tests.apps.reservations.models import Effect, Reservation
from tests.support.marks import only_on
from tests.support.rows import effects, event_of, leave, the_execution, the_run

pytestmark = pytest.mark.django_db(transaction=True)


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def settings() -> dict[str, Any]:
    """Return the current settings of the session."""
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        return {name: session._pragma(connection, name) for name in sorted(session._SESSION_PRAGMAS)}
    found = session._settings(connection)
    return {name: value for name, value in found.items() if name.upper() != "ERROR_COUNT"}


STATEMENTS = {
    "postgresql": [
        "SET TIME ZONE 'Pacific/Kiritimati'",
        "SET search_path TO pg_catalog",
        "/* of a library */ SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SELECT set_config('search_path', 'pg_catalog', false)",
        "SELECT 1; SET ROLE pg_monitor",
        "SET LOCAL search_path TO pg_catalog",
        "SET statement_timeout = '5h'; SET DateStyle = 'SQL, DMY'",
    ],
    "mysql": [
        "SET time_zone = '+09:00'",
        "USE information_schema",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
        "SET sql_mode = ''",
        "SET foreign_key_checks = 0, sql_select_limit = 1",
        "SET NAMES latin1",
    ],
    "sqlite": [
        "PRAGMA query_only = 1",
        "PRAGMA busy_timeout(1)",
        "PRAGMA main.cache_size = 7",
    ],
}
HOWS = STATEMENTS[connection.vendor]


@pytest.mark.parametrize(("works", "atomic"), [(True, False), (False, True)], ids=["worker", "atomic"])
@pytest.mark.parametrize("sql", HOWS)
def test_58_a_step_that_changes_the_session_goes_on_and_the_next_one_finds_it_as_it_was(sql, atomic, works):
    @workflow("changes")
    class Changes:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=atomic)
        def begin(self):
            execute(sql)
            return goto(self.then)

        @step(atomic=atomic)
        def then(self):
            seen.append(settings())
            Effect.objects.create(name="then")
            return complete()

    seen: list[dict[str, Any]] = []
    before = settings()
    runs = [engine.start("changes"), engine.start("changes")]
    drain(heartbeat=works)
    for run in runs:
        run.refresh_from_db()
        assert (run.status, run.error, run.losses, run.steps.count()) == ("completed", "", 0, 2)
    assert seen == [before, before]
    assert settings() == before
    assert effects() == ["then", "then"]


def test_58_a_worker_goes_on_with_a_new_connection_and_only_then():
    """The new connection is needed because some changes cannot be read (user variables, temporary tables)."""

    @workflow("lasting")
    class Lasting:
        class Context(BaseModel):
            sql: str = ""

        @step(start=True)
        def begin(self):
            sessions.append(connection.connection)
            if self.context.sql:
                execute(self.context.sql)
            return complete()

    sessions: list[object] = []
    for sql in ("", "", HOWS[0], ""):
        engine.start("lasting", sql=sql)
        drain(heartbeat=True)
    first, second, third, last = sessions
    assert first is second is third
    assert last is not third or connection.is_in_memory_db()


@only_on("postgresql", reason="only PostgreSQL has SET LOCAL")
def test_58_what_ends_with_the_transaction_costs_no_connection():
    @workflow("local")
    class Local:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            sessions.append(connection.connection)
            execute("SET LOCAL statement_timeout = '5h'")
            return complete()

    sessions: list[object] = []
    for _ in range(2):
        engine.start("local")
        drain(heartbeat=True)
    assert sessions[0] is sessions[1]


def autocommit_off() -> None:
    transaction.set_autocommit(False)


def autocommit_off_and_committed() -> None:
    transaction.set_autocommit(False)
    leave("kept")
    transaction.commit()


def autocommit_off_behind_django() -> None:
    raw: Any = connection.connection
    if connection.vendor == "postgresql":
        raw.autocommit = False
    elif connection.vendor == "mysql":
        raw.autocommit(False)
    else:
        raw.isolation_level = "DEFERRED"


def another_isolation_level() -> None:
    raw: Any = connection.connection
    raw.isolation_level = 4


@pytest.mark.parametrize("works", [True, False], ids=["worker", "other"])
@pytest.mark.parametrize(
    "how",
    [
        autocommit_off,
        autocommit_off_and_committed,
        autocommit_off_behind_django,
        *([another_isolation_level] if connection.vendor == "postgresql" else []),
    ],
)
def test_58_a_driver_that_was_switched_is_as_it_was_for_the_engine(how, works):
    @workflow("switches")
    class Switches:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=False)
        def begin(self):
            how()
            return complete()

    connection.ensure_connection()
    before = session._driver_state(connection)
    runs = [engine.start("switches"), engine.start("switches")]
    drain(heartbeat=works)
    connection.ensure_connection()
    assert session._driver_state(connection) == before
    for run in runs:
        run.refresh_from_db()
        assert (run.status, run.losses, run.steps.count()) == ("completed", 0, 1)
    assert effects() == (["kept", "kept"] if how is autocommit_off_and_committed else [])


def leaves_a_block() -> None:
    transaction.atomic().__enter__()


def leaves_two_blocks() -> None:
    transaction.atomic().__enter__()
    transaction.atomic().__enter__()


def begins() -> None:
    execute("BEGIN")


OPEN: list[Callable[[], None]] = [leaves_a_block, leaves_two_blocks, begins, autocommit_off]


@pytest.mark.parametrize(
    ("how", "atomic"),
    [*((how, False) for how in OPEN), (leaves_a_block, True), (leaves_two_blocks, True)],
)
def test_58_what_is_left_open_is_rolled_back_and_the_step_has_failed(how, atomic, work):
    @workflow("open", default_retry=Retry(max_attempts=3, base_delay=timedelta(0)))
    class Open:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=atomic)
        def begin(self):
            how()
            leave("lost")
            return complete()

    runs = [engine.start("open"), engine.start("open")]
    work()
    for run in runs:
        run.refresh_from_db()
        assert (run.status, run.losses, run.steps.count()) == ("failed", 0, 1)
        assert "OpenTransactionError: User code left a transaction open" in run.error
    assert effects() == []
    assert (connection.in_atomic_block, connection.get_autocommit()) == (False, True)


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize("how", [leaves_a_block, leaves_two_blocks])
def test_58_inside_a_test_case_only_what_the_step_has_left_is_rolled_back(how, work):
    @workflow("open")
    class Open:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            how()
            leave("lost")
            return complete()

    leave("of the test")
    blocks, run = list(connection.atomic_blocks), engine.start("open")
    work()
    run.refresh_from_db()
    assert run.status == "failed"
    assert effects() == ["of the test"]
    assert connection.atomic_blocks == blocks


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize("sql", HOWS)
def test_58_inside_a_test_case_settings_are_put_back_and_its_connection_stays(sql):
    @workflow("changes")
    class Changes:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            execute(sql)
            return complete()

    before, raw, run = settings(), connection.connection, engine.start("changes")
    drain(heartbeat=connection.vendor != "sqlite")
    assert (settings(), connection.connection) == (before, raw)
    run.refresh_from_db()
    assert run.status == "completed"


def test_58_conditions_callbacks_and_handlers_leave_the_session_too(declare):
    """The session is also restored after ``@on_fail``."""

    def odd(stay: Reservation) -> bool:
        if draining():  # in a save, the connection belongs to the process that saves
            execute(HOWS[0])
        return True

    declare(Reservation, EventDefinition("odd", date_field="checkin_at", condition=odd, rearm=True))

    @on_event("odd", name="odd")
    def listens(event):
        execute(HOWS[0])

    @agent("odd", spawn_on="odd")
    class Odd:
        class Context(BaseModel):
            pass

        @classmethod
        def create_context(cls, event):
            execute(HOWS[0])
            return cls.Context()

        @handler("odd", condition=lambda event: execute(HOWS[0]) is None)
        def hears(self, event):
            execute(HOWS[0])

    @event_workflow("odd", default_retry=Retry(max_attempts=1))
    class Planned:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            raise LookupError

        @on_fail
        def end(self, error):
            execute(HOWS[0])

    before = settings()
    stay = Reservation.objects.create(checkin_at=timezone.now())
    drain(heartbeat=True)
    assert settings() == before
    assert event_of(stay, "odd").status == "processed"
    assert the_execution().status == "completed"
    assert AgentRun.objects.get().executions.get().status == "completed"
    assert the_run().status == "failed"
