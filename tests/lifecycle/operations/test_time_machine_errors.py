"""The time machine collects the errors of user code and raises them on request."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.exceptions import AutomationError, DefinitionError
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.signals import attempt_finished, perform_failed, row_parked
from django_ai.automation.testing import ParkedRowError, assert_occurred, errors, runs_of
from django_ai.automation.testing import time_machine as machine_at
from django_ai.automation.workflows.core import Retry, complete, engine, get_wake, goto, sleep, step, wait, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Ticket
from tests.support.marks import only_on
from tests.support.rows import effects, status_of
from tests.support.time_machine import NOON, book, hear

DUE, CONFIRMED = "checkin_due", "reservation_confirmed"
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def trip(name="trip", event=CONFIRMED, **options):
    @on_event(event, name=name, **{"retry": Retry(max_attempts=1), **options})
    def handler(event):
        raise RuntimeError(f"{name} {event.entity.note}")


def test_errors_are_kept_and_raised_only_when_asked_for(machine):
    trip()
    book(note="a")
    machine.process()
    assert [str(error) for error in machine.errors] == ["trip a"]
    machine.process(raise_errors=True)  # errors of a call without raise_errors are not raised later
    book(note="b")
    with pytest.raises(RuntimeError, match="trip b"):
        machine.process(raise_errors=True)
    assert CallbackExecution.objects.filter(status="failed").count() == 2
    machine.process(raise_errors=True)
    assert len(machine.errors) == 2


@pytest.mark.django_db
def test_raise_errors_raises_each_error_once_after_all_is_done():
    trip("one", retry=Retry(max_attempts=2, base_delay=MINUTE))
    hear("fine", CONFIRMED)
    with machine_at(NOON, raise_errors=True) as machine:
        stay = book(note="a")
        with pytest.raises(RuntimeError, match="one a") as caught:
            machine.process()
        assert any("one" in note and "2030-01-07T12:00" in note for note in caught.value.__notes__)
        assert effects() == ["fine 0:00:00"]
        assert status_of(stay, CONFIRMED) == "processed"
        machine.process()
        machine.advance(seconds=59)
        with pytest.raises(RuntimeError, match="one a"):
            machine.advance(days=1)
        assert machine.now == NOON + DAY + 59 * SECOND
        book(note="b")
        machine.process(raise_errors=False)
        assert [str(error) for error in machine.errors] == ["one a", "one a", "one b"]


def test_several_errors_come_as_a_group(machine):
    trip("one")
    trip("two")
    book()
    with pytest.raises(ExceptionGroup) as caught:
        machine.process(raise_errors=True)
    assert sorted(str(error) for error in caught.value.exceptions) == ["one ", "two "]


def test_a_parked_row_is_an_error(machine, declare):
    declare(Ticket, EventDefinition("ticket_due", date_field="due_at"))
    Ticket.objects.create(due_at=NOON + HOUR)
    declare(Ticket)
    with pytest.raises(AssertionError, match=r"(?s)ticket_due.*was parked at 2030-01-07T13:00.*UnknownEventError"):
        machine.advance(hours=1, raise_errors=True)
    assert issubclass(ParkedRowError, AutomationError)
    machine.process(raise_errors=True)


def broken(entity):
    raise LookupError(entity.title)


@pytest.mark.parametrize("asked", ["condition", "namespace", "payload"])
def test_what_an_event_asks_in_a_save_or_later_is_an_error(machine, declare, asked):
    declare(Ticket, EventDefinition("boom", **{asked: broken}))
    Ticket.objects.create(title="a")
    with pytest.raises(LookupError, match="a") as caught:
        machine.process(raise_errors=True)
    assert [*machine.errors] == [caught.value]
    machine.process(raise_errors=True)  # each error is raised once
    with pytest.raises(ExceptionGroup) as group:
        machine.advance(hours=1, raise_errors=True)
    # The fifth error parks the event. It is raised itself, without an additional ParkedRowError.
    assert [type(each) for each in group.value.exceptions] == [LookupError] * 4
    assert [*machine.errors] == [caught.value, *group.value.exceptions]
    assert Event.objects.get().status == "parked"


@pytest.mark.parametrize(
    ("name", "error", "status"),
    [
        ("at:{{ instance.title.year }}", AttributeError, "pending"),
        (f"{'x' * 170}{{{{ instance.title }}}}", DefinitionError, "parked"),
    ],
    ids=["raises", "is too long"],
)
def test_a_name_that_raises_or_is_refused_is_an_error(machine, declare, name, error, status):
    declare(Ticket, EventDefinition(name))
    Ticket.objects.create(title="a" * 40)
    with pytest.raises(error) as caught:
        machine.process(raise_errors=True)
    assert [*machine.errors] == [caught.value]
    assert Event.objects.get().status == status


def test_a_save_that_raises_again_before_a_worker_has_asked_is_an_error(db, declare):
    declare(Ticket, EventDefinition("boom", broken))
    ticket = Ticket.objects.create(title="a")
    with machine_at(raise_errors=True) as machine:
        ticket.save()
        with pytest.raises(LookupError, match="a"):
            machine.process()


def test_a_row_that_its_own_error_parked_is_raised_once(machine):
    @workflow("count")
    class Count:
        class Context(BaseModel):
            number: int = 0

        @step(start=True)
        def first(self):
            return complete() if get_wake().reason == "signal" else wait("number")

    engine.start("count")
    machine.process()
    engine.signal("number", {"number": "many"})
    with pytest.raises(AutomationError, match="number") as caught:
        machine.process(raise_errors=True)
    assert not isinstance(caught.value, ParkedRowError)
    assert runs_of("count")[0].status == "parked"


def test_what_the_engine_cannot_perform_is_an_error_and_parked_in_the_end(machine, monkeypatch):
    def broken(self, clock):
        raise LookupError("engine trouble")

    monkeypatch.setattr(WorkflowRun, "perform", broken)

    @workflow("plain")
    class Plain:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    engine.start("plain")
    with pytest.raises(LookupError, match="engine trouble"):
        machine.process(raise_errors=True)
    machine.advance(minutes=5)
    assert [str(error) for error in machine.errors] == ["engine trouble"] * 3
    assert runs_of("plain")[0].status == "parked"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sleep", "goto"])
def test_running_in_circles_is_an_error_that_names_the_row(kind, machine, monkeypatch):
    monkeypatch.setattr(errors, "MAX_ATTEMPTS_AT_ONE_MOMENT", 50)

    @workflow("circle")
    class Circle:
        class Context(BaseModel):
            pass

        @step(start=True)
        def around(self):
            return sleep(timedelta(0)) if kind == "sleep" else goto(self.around)

    engine.start("circle")
    for _ in range(2):
        with pytest.raises(AutomationError, match=r"rows are due without end.*circle #"):
            machine.advance(hours=1)
        assert machine.now == NOON


@pytest.mark.parametrize(("rounds", "rows", "tries"), [(0, 1, 50), (0, 500, 1), (50, 0, 0)])
def test_what_counts_as_a_circle(rounds, rows, tries, monkeypatch):
    """Too many attempts of one row, of all rows together, or too many rounds without any attempt raise an error."""
    monkeypatch.setattr(errors, "MAX_ATTEMPTS_AT_ONE_MOMENT", 50)
    watch = errors.ErrorCollector()
    found = [WorkflowRun(pk=number, name="circle") for number in range(rows)]
    attempts = [(row, number) for number in range(tries) for row in found]

    def go(attempts, rounds):
        for row, _ in attempts:
            watch._attempted(WorkflowRun, row, None)
        for _ in range(rounds):
            watch.count_round(lambda: found[:1])

    go(attempts[1:], max(rounds - 1, 1))
    watch.moved()
    go(attempts, rounds - 1)
    with pytest.raises(AutomationError, match="rows are due without end" + ".*circle #" * bool(rows)):
        go([], 1)
    go(attempts[1:], 1)  # counting starts again after the error


@only_on("postgresql", reason="the test needs the row locks of PostgreSQL")
@pytest.mark.django_db(transaction=True)
def test_a_row_that_another_connection_holds_is_no_endless_wait(monkeypatch):
    monkeypatch.setattr(errors, "MAX_ATTEMPTS_AT_ONE_MOMENT", 50)
    with machine_at(NOON) as machine:
        book(DAY)
        other = connections.create_connection("default")
        try:
            other.set_autocommit(False)
            other.cursor().execute(f"SELECT * FROM {Event._meta.db_table} FOR UPDATE")
            with pytest.raises(AutomationError, match=r"rows are due without end.*checkin_due"):
                machine.advance(days=2)
            assert machine.now == NOON + DAY
        finally:
            other.close()
        machine.advance(days=2)
    assert_occurred(DUE)


@pytest.mark.slow
def test_a_long_way_is_no_circle(machine, monkeypatch):
    monkeypatch.setattr(errors, "MAX_ATTEMPTS_AT_ONE_MOMENT", 50)

    @workflow("steps")
    class Steps:
        class Context(BaseModel):
            left: int = 300

        @step(start=True)
        def one(self):
            self.context.left -= 1
            return sleep(MINUTE) if self.context.left else complete()

    engine.start("steps")
    machine.advance(days=1)
    assert runs_of("steps")[0].status == "completed"


def test_a_step_does_not_move_time(machine):
    @on_event(CONFIRMED, name="mover", retry=Retry(max_attempts=1))
    def mover(event):
        machine.advance(hours=1)

    book()
    with pytest.raises(AutomationError, match="Only the test may move it"):
        machine.process(raise_errors=True)
    assert machine.now == NOON


def test_nothing_listens_when_it_is_off(db):
    counts = [len(signal.receivers) for signal in (attempt_finished, perform_failed, row_parked)]
    with machine_at(NOON) as machine:
        pass
    trip()
    book()
    drain(timezone.now() + DAY)
    assert machine.errors == []
    assert [len(signal.receivers) for signal in (attempt_finished, perform_failed, row_parked)] == counts
