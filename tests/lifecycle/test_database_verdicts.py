"""One verdict on every database: what cannot be stored alike everywhere is refused before it gets there."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import DatabaseError, connection
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.exceptions import NotStorableError
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    fail,
    get_wake,
    goto,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.app.models import Effect, Reservation, Room
from tests.lifecycle.looking import definition_of, effects, event_of, leave, the_execution, the_run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def deep(levels: int) -> list:
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


UNSTORABLE = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "nan_in_a_list": [1, [float("nan")]],
    "nan_in_a_dict": {"x": {"y": float("-inf")}},
    "decimal_nan": Decimal("NaN"),
    "nul": "a\x00b",
    "nul_in_a_key": {"a\x00b": 1},
    "surrogate": "\ud83d",
    "too_large": "x" * 1_000_001,
    "too_large_in_bytes": "ü" * 600_000,
    "deep": deep(500),
    "object": object(),
}

STORABLE = {
    "backslash": "\\u0000",
    "emoji": "🛎 Lübeck \u2028",
    "big": "x" * 900_000,
    "number": 1.5e16,
    "tiny": 5e-324,
    "integer": 2**70,
    "negative": -0.5,
    "nested": deep(20),
    "empty": {"": ""},
    "quotes": 'O\'Brien "x" %s {} $1',
}


@pytest.fixture
def holder():
    @workflow("holder")
    class Holder:
        class Context(BaseModel):
            model_config = {"arbitrary_types_allowed": True}
            case: str
            value: object = None

        @step(start=True)
        def first(self):
            leave("lost")
            self.context.value = {**UNSTORABLE, **STORABLE}[self.context.case]
            return goto(self.second)

        @step()
        def second(self):
            return sleep(HOUR, then=self.third)

        @step()
        def third(self):
            assert self.context.value == STORABLE[self.context.case]
            return complete()


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("case", UNSTORABLE)
def test_a_context_that_cannot_be_stored_fails_the_run(case, clock, work):
    run = engine.start("holder", case=case)
    for _ in range(5):
        work()
        clock.tick(timedelta(minutes=6))
    run.refresh_from_db()
    assert run.status == "failed"
    assert "NotStorableError" in run.error or "ContextError" in run.error
    assert "holder.first" in run.error
    assert run.data["value"] is None  # as it was before
    assert effects() == []
    assert run.steps.count() == 1  # trying again would not help


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("case", STORABLE)
def test_a_context_that_can_be_stored_comes_back(case, clock, work):
    run = engine.start("holder", case=case)
    work()
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.error) == ("completed", "")


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("case", UNSTORABLE)
def test_a_start_that_cannot_be_stored_is_refused(case):
    with pytest.raises(NotStorableError, match="holder"):
        engine.start("holder", case="x", value=UNSTORABLE[case])
    assert not WorkflowRun.objects.exists()
    Effect.objects.create(name="the connection is fine")


@pytest.mark.parametrize("case", UNSTORABLE)
def test_a_signal_that_cannot_be_stored_is_refused(case):
    with pytest.raises(NotStorableError, match="bell"):
        engine.signal("bell", {"value": UNSTORABLE[case]})
    assert not Signal.objects.exists()


@pytest.mark.parametrize("case", STORABLE)
def test_a_signal_that_can_be_stored_arrives(case, work):
    seen = []

    @workflow("hearer")
    class Hearer:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "first":
                return wait("bell")
            seen.append(get_wake().payload["value"])
            return complete()

    engine.start("hearer")
    work()
    engine.signal("bell", {"value": STORABLE[case]})
    work()
    assert seen == [STORABLE[case]]


@pytest.mark.parametrize("case", UNSTORABLE)
def test_a_payload_of_an_event_that_cannot_be_stored_parks_it(case, monkeypatch):
    value = UNSTORABLE[case]
    monkeypatch.setattr(definition_of(Reservation, "reservation_confirmed"), "payload", lambda stay: {"value": value})
    stay = Reservation.objects.create(status="confirmed")
    event = event_of(stay, "reservation_confirmed")
    assert event.status == "parked"
    assert "NotStorableError" in event.error


@pytest.mark.parametrize("text", ["a NUL \x00", "a surrogate \ud800", "x" * 200_000])
def test_errors_with_odd_texts_are_kept_everywhere(text, work):
    @workflow("odd")
    class Odd:
        class Context(BaseModel):
            pass

        @step(start=True, retry=Retry(max_attempts=1))
        def first(self):
            raise ValueError(text)

    run = engine.start("odd")
    work()
    run.refresh_from_db()
    assert run.status == "failed"
    assert run.steps.get().error
    assert len(run.error) < 50_000


ODD = pytest.mark.parametrize("text", ["a NUL \x00", "a surrogate \ud800"])


@ODD
def test_reasons_of_fail_with_odd_texts_are_kept_everywhere(text, work):
    @workflow("odd")
    class Odd:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return fail(text)

    run = engine.start("odd")
    work()
    run.refresh_from_db()
    assert run.status == "failed"
    assert run.error.startswith(text[:-1])


@ODD
def test_reasons_of_cancel_with_odd_texts_are_kept_everywhere(text, work):
    @workflow("odd")
    class Odd:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    run = engine.start("odd")
    engine.cancel(run, text)
    assert run.status == "cancelled"
    assert run.error.startswith(text[:-1])


@ODD
def test_signals_of_odd_names_are_refused_everywhere(text):
    with pytest.raises(ValueError, match=r"engine\.signal"):
        engine.signal(text)


@ODD
def test_conditions_with_odd_errors_park_everywhere(text, monkeypatch):
    def condition(stay):
        raise ValueError(text)

    monkeypatch.setattr(definition_of(Reservation, "reservation_confirmed"), "condition", condition)
    stay = Reservation.objects.create(status="confirmed")
    assert event_of(stay, "reservation_confirmed").status == "parked"


@ODD
def test_conditions_with_odd_errors_park_everywhere_when_a_worker_asks(text, monkeypatch, clock, work):
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)

    def condition(stay):
        raise ValueError(text)

    monkeypatch.setattr(definition_of(Reservation, "checkin_due"), "condition", condition)
    clock.tick(HOUR)
    work()
    assert event_of(stay, "checkin_due").status == "parked"


def test_a_statement_of_the_user_that_fails_costs_a_try_and_not_the_worker(clock, work):
    @workflow("sql")
    class Sql:
        class Context(BaseModel):
            n: int = 0

        @step(start=True, retry=Retry(max_attempts=2))
        def first(self):
            self.context.n += 1
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM a_table_that_is_not_there")
            return complete()

    run = engine.start("sql")
    work()
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.data["n"], run.steps.count()) == ("failed", 2, 2)
    assert "a_table_that_is_not_there" in run.error


def raw_sql():
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM a_table_that_is_not_there")


def same_key_twice():
    for _ in range(2):
        Room.objects.create(number="1")


@pytest.mark.parametrize("mistake", [raw_sql, same_key_twice])
def test_an_error_of_the_database_that_the_user_swallowed(mistake, clock, work):
    """The transaction is spoilt then, where the database or Django says so. It costs tries like any other mistake of
    the step: the run must end, and say why, and not be tried for ever."""

    @workflow("swallowed")
    class Swallowed:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            with contextlib.suppress(DatabaseError):
                mistake()
            return complete()

    engine.start("swallowed")
    for _ in range(10):
        work()
        clock.tick(timedelta(minutes=6))
    run = the_run()
    assert run.status in ("completed", "failed")
    assert run.status == "completed" or "transaction" in run.error
    assert run.steps.count() <= 3


@pytest.mark.parametrize("mistake", [raw_sql, same_key_twice])
def test_an_error_of_the_database_that_a_callback_swallowed(mistake, clock, work):
    @on_event("reservation_confirmed")
    def careless(event):
        with contextlib.suppress(DatabaseError):
            mistake()

    Reservation.objects.create(status="confirmed")
    for _ in range(10):
        work()
        clock.tick(timedelta(minutes=6))
    row = the_execution()
    assert row.status in ("completed", "failed")
    assert row.attempt <= 3


@pytest.mark.parametrize("number", [1e300, 5e-324, 0.1, 1e16, -0.0, 123456789.123456789])
def test_a_float_stays_a_float(number, clock, work):
    @workflow("float")
    class Float:
        class Context(BaseModel):
            number: float

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            leave(f"{type(self.context.number).__name__} {self.context.number == number}")
            return complete()

    engine.start("float", number=number)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["float True"]
