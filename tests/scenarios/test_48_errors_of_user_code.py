"""User code raises errors that look like a database failure or like a shutdown.

The attempt fails, ``retry=`` applies, and the worker continues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import InterfaceError, OperationalError, connection, connections
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import EventDefinition, Retry, complete, engine, on_event, step, workflow
from tests.apps.reservations.models import Effect, Reservation
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

TWICE = Retry(max_attempts=2, base_delay=timedelta(0))


def uses_a_closed_cursor() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    cursor.execute("SELECT 1")


def raises_interface_error() -> None:
    raise InterfaceError("connection already closed")


def asks_a_database_that_is_away() -> None:
    """Raise the error of another database of the project. The database of the automations is available."""
    raise OperationalError("connection to server failed") from _Lost()


class _Lost(Exception):
    sqlstate = "08006"


def is_cancelled() -> None:
    raise asyncio.CancelledError


def exits_a_generator() -> None:
    raise GeneratorExit


HOWS: list[Callable[[], None]] = [
    uses_a_closed_cursor, raises_interface_error, asks_a_database_that_is_away, is_cancelled, exits_a_generator,
]  # fmt: skip


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_48_the_attempt_fails_and_the_worker_goes_on(work, how, atomic):
    @workflow("wild", default_retry=TWICE)
    class Wild:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=atomic)
        def begin(self):
            if atomic:
                Effect.objects.create(name="rolled back")
            how()
            return complete()

    @workflow("tame")
    class Tame:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            leave("tame")
            return complete()

    run, other = engine.start("wild"), engine.start("tame")
    work()
    run.refresh_from_db()
    other.refresh_from_db()
    assert (run.status, run.losses, run.steps.count()) == ("failed", 0, 2)
    assert "Traceback" in run.error
    assert other.status == "completed"
    assert effects() == ["tame"]


def test_48_a_lost_connection_of_our_own_costs_no_attempt(work):
    """If the engine's own database session no longer works, the failure does not count as an attempt."""

    @workflow("unlucky", default_retry=Retry(max_attempts=1))
    class Unlucky:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=False)
        def begin(self):
            if not Effect.objects.exists():
                leave("first")
                connections["default"].close()
                raise OperationalError("server closed the connection unexpectedly") from _Lost()
            return complete()

    run = engine.start("unlucky")
    work()
    run.refresh_from_db()
    assert (run.status, run.attempt, run.losses) == ("running", 0, 0)
    work(run.wake_at)
    run.refresh_from_db()
    assert run.status == "completed"


@pytest.mark.parametrize("where", ["in a save", "when it is due"])
def test_48_a_condition_that_asks_a_database_that_is_away_is_asked_again_with_a_backoff(declare, work, where):
    away: list[object] = []

    def condition(stay: Reservation) -> bool:
        if away:
            asks_a_database_that_is_away()
        return True

    declare(Reservation, EventDefinition("arrived", condition, date_field="checkin_at"))
    on_event("arrived", name="heard")(lambda event: leave("heard"))
    if where == "in a save":
        away.append(where)
    stay = Reservation.objects.create(checkin_at=timezone.now())
    away.append(where)
    if where != "in a save":
        work()
    event, delays = event_of(stay, "arrived"), []
    for _ in range(3):
        now = event.wake_at
        work(now)
        event.refresh_from_db()
        delays.append((event.wake_at - now).total_seconds())
    assert delays == [2, 4, 8]
    away.clear()
    work(event.wake_at)
    assert effects() == ["heard"]
