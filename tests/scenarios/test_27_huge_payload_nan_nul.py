"""Scenario 27: values that some databases would refuse or change are treated the same on every database.

Values that not every database can store (NaN, NUL, lone surrogates, too large values) are refused before they reach the
database: in Contexts, arguments, payloads of signals and events, and arguments of ``complete``. All other values are
read back unchanged. Each visit of a step has its own retry budget.
"""

from __future__ import annotations

import contextlib
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import DatabaseError, connection, transaction
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event, on_event_cancelled
from django_ai.automation.events.models import Event
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
from tests.apps.reservations.models import Effect, Reservation, Room
from tests.support.rows import definition_of, effects, event_of, leave, the_execution, the_run, use_up_attempts

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
def test_27_a_context_that_cannot_be_stored_fails_the_run(case, clock, work):
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
    assert run.steps.count() == 1  # a retry would not help


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("case", STORABLE)
def test_27_a_context_that_can_be_stored_comes_back(case, clock, work):
    run = engine.start("holder", case=case)
    work()
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.error) == ("completed", "")


@pytest.mark.usefixtures("holder")
@pytest.mark.parametrize("case", UNSTORABLE)
def test_27_a_start_that_cannot_be_stored_is_refused(case):
    with pytest.raises(NotStorableError, match="holder"):
        engine.start("holder", case="x", value=UNSTORABLE[case])
    assert not WorkflowRun.objects.exists()
    Effect.objects.create(name="the connection is fine")


@pytest.mark.parametrize("case", UNSTORABLE)
def test_27_a_signal_that_cannot_be_stored_is_refused(case):
    with pytest.raises(NotStorableError, match="bell"):
        engine.signal("bell", {"value": UNSTORABLE[case]})
    assert not Signal.objects.exists()


@pytest.mark.parametrize("case", STORABLE)
def test_27_a_signal_that_can_be_stored_arrives(case, work):
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
def test_27_a_payload_of_an_event_that_cannot_be_stored_parks_it(case, monkeypatch):
    value = UNSTORABLE[case]
    monkeypatch.setattr(definition_of(Reservation, "reservation_confirmed"), "payload", lambda stay: {"value": value})
    stay = Reservation.objects.create(status="confirmed")
    event = event_of(stay, "reservation_confirmed")
    assert event.status == "parked"
    assert "NotStorableError" in event.error


@pytest.mark.parametrize("text", ["a NUL \x00", "a surrogate \ud800", "x" * 200_000])
def test_27_errors_with_odd_texts_are_kept_everywhere(text, work):
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
def test_27_reasons_of_fail_with_odd_texts_are_kept_everywhere(text, work):
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
def test_27_reasons_of_cancel_with_odd_texts_are_kept_everywhere(text, work):
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
def test_27_signals_of_odd_names_are_refused_everywhere(text):
    with pytest.raises(ValueError, match=r"engine\.signal"):
        engine.signal(text)


@ODD
def test_27_conditions_with_odd_errors_park_everywhere(text, monkeypatch, work):
    def condition(stay):
        raise ValueError(text)

    monkeypatch.setattr(definition_of(Reservation, "reservation_confirmed"), "condition", condition)
    stay = Reservation.objects.create(status="confirmed")
    use_up_attempts(event_of(stay, "reservation_confirmed"), work)
    assert event_of(stay, "reservation_confirmed").status == "parked"


@ODD
def test_27_conditions_with_odd_errors_park_everywhere_when_a_worker_asks(text, monkeypatch, clock, work):
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)

    def condition(stay):
        raise ValueError(text)

    monkeypatch.setattr(definition_of(Reservation, "checkin_due"), "condition", condition)
    clock.tick(HOUR)
    use_up_attempts(event_of(stay, "checkin_due"), work)
    assert event_of(stay, "checkin_due").status == "parked"


def test_27_a_statement_of_the_user_that_fails_costs_a_try_and_not_the_worker(clock, work):
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
def test_27_an_error_of_the_database_that_the_user_swallowed(mistake, clock, work):
    """A step that swallows a database error ends its run within its attempts: completed, or failed with the reason.

    Where the error breaks the transaction, it uses up attempts like any other error of the step.
    """

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
def test_27_an_error_of_the_database_that_a_callback_swallowed(mistake, clock, work):
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
def test_27_a_float_stays_a_float(number, clock, work):
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


ODD_VALUES = {
    "money": Decimal("12345678901234567890.1234567890"),
    "tiny": Decimal("1E-30"),
    "token": uuid.UUID(int=2**127 + 1),
    "moment": datetime(2030, 3, 31, 1, 30, 0, 123456, tzinfo=UTC),
    "day": date(2030, 2, 28),
    "pause": timedelta(days=-1, microseconds=1),
    "secret": b"bytes",
    "many": frozenset({1, 2}),
}


class Odd(BaseModel):
    money: Decimal | None = None
    tiny: Decimal | None = None
    token: uuid.UUID | None = None
    moment: datetime | None = None
    day: date | None = None
    pause: timedelta | None = None
    secret: bytes | None = None
    many: frozenset[int] | None = None


@pytest.mark.parametrize("name", ODD_VALUES)
def test_27_typed_values_of_a_context_come_back_as_they_were(name, clock, work):
    """The value is unchanged as an argument, when a step sets it, and when ``complete`` receives it."""
    value, seen = ODD_VALUES[name], []

    @workflow("typed")
    class Typed:
        class Context(Odd):
            again: bool = False

        @step(start=True)
        def first(self):
            seen.append(getattr(self.context, name))
            setattr(self.context, name, None)
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            assert getattr(self.context, name) is None
            setattr(self.context, name, value)
            return sleep(HOUR, then=self.third)

        @step()
        def third(self):
            seen.append(getattr(self.context, name))
            return complete(**{name: value})

    run = engine.start("typed", **{name: value})
    for _ in range(3):
        work()
        clock.tick(HOUR)
    run.refresh_from_db()
    assert run.status == "completed", run.error
    assert seen == [value, value]
    assert getattr(Odd.model_validate(run.data), name) == value


@pytest.mark.parametrize("name", ODD_VALUES)
def test_27_typed_values_in_a_payload_are_refused_with_their_place(name):
    """A payload is plain JSON and does not keep types, so the error for a typed value names its key."""
    with pytest.raises(NotStorableError, match="'value'"):
        engine.signal("bell", {"value": ODD_VALUES[name]})
    assert not Signal.objects.exists()


@pytest.mark.parametrize("case", UNSTORABLE)
def test_27_what_complete_is_given_has_the_same_verdict(case, work):
    @workflow("finisher")
    class Finisher:
        class Context(BaseModel):
            model_config = {"arbitrary_types_allowed": True}
            value: object = None

        @step(start=True)
        def first(self):
            leave("lost")
            return complete(value=UNSTORABLE[case])

    run = engine.start("finisher")
    work()
    run.refresh_from_db()
    assert run.status == "failed"
    assert "NotStorableError" in run.error or "ContextError" in run.error
    assert effects() == []
    assert run.steps.count() == 1


def test_27_a_snapshot_keeps_what_the_fields_of_an_entity_had(work):
    """The snapshot of a deleted entity keeps a foreign key, a datetime, a boolean, and a string with odd characters."""
    from tests.apps.reservations.models import Guest

    seen = []

    @on_event_cancelled("checkin_due", name="gone")
    def gone(event):
        entity = event.entity
        seen.append((entity.guest_id, entity.checkin_at, entity.note, entity.docs))

    guest = Guest.objects.create(name="Ada")
    moment = datetime(2040, 3, 31, 1, 30, 0, 123456, tzinfo=UTC)
    note = "🛎 Lübeck \u2028 'x' \\u0000 %s"
    stay = Reservation.objects.create(guest=guest, status="confirmed", checkin_at=moment, note=note, docs=True)
    stay.delete()
    work()
    assert seen == [(guest.pk, moment, note, True)]


@pytest.mark.parametrize("text", ["a\x00b", "\ud83d"])
def test_27_a_field_that_the_database_refuses_breaks_the_save_and_nothing_else(text, work):
    """If the database refuses the value of a model field, only that save and its events are rolled back."""
    before = Event.objects.count()
    with contextlib.suppress(DatabaseError, ValueError), transaction.atomic():
        Reservation.objects.create(status="confirmed", note=text)
    stay = Reservation.objects.create(status="confirmed", note="fine")
    work()
    assert event_of(stay, "reservation_confirmed").status == "processed"
    assert Event.objects.count() - before == 4 * Reservation.objects.count()


def test_27_each_visit_of_a_step_has_its_own_retry_budget(clock, work):
    tries = []

    @workflow("budget")
    class Budget:
        class Context(BaseModel):
            rounds: int = 0

        @step(start=True, retry=Retry(max_attempts=3, base_delay=timedelta(seconds=1)))
        def first(self):
            tries.append(self.context.rounds)
            if len([each for each in tries if each == self.context.rounds]) < 3:
                raise RuntimeError("not yet")
            return goto(self.second)

        @step()
        def second(self):
            self.context.rounds += 1
            return complete() if self.context.rounds == 4 else goto(self.first)

    run = engine.start("budget")
    for _ in range(20):
        work()
        clock.tick(timedelta(seconds=10))
    run.refresh_from_db()
    assert run.status == "completed", run.error
    assert tries == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
