"""The time machine advances days in milliseconds and performs every due row at its own time.

The results must not depend on whether a test commits. So ``machine`` runs each test twice: as in a TransactionTestCase
and as in a TestCase.
"""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.db import IntegrityError, connection, transaction
from django.test import TestCase, TransactionTestCase
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.testing import assert_not_occurred, assert_occurred, runs_of
from django_ai.automation.testing import time_machine as machine_at
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_wake,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from tests.apps.reservations.models import Document, Reservation, Ticket
from tests.support.rows import effects, event_of, history, leave, status_of, the_execution
from tests.support.time_machine import NOON, book, hear, stamp

DUE, CONFIRMED = "checkin_due", "reservation_confirmed"
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


# -- what is due -------------------------------------------------------------------------------------------------------


def test_process_performs_what_is_due_now_and_moves_nothing(machine):
    hear("confirmed", CONFIRMED)
    hear("created", CONFIRMED, on_event_created)
    hear("due")
    stay = book()
    assert machine.process() >= 1
    assert sorted(effects()) == ["confirmed 0:00:00", "created 0:00:00"]
    assert status_of(stay, CONFIRMED) == "processed"
    assert status_of(stay, DUE) == "pending"
    assert machine.process() == 0
    assert machine.now == NOON


def test_the_number_of_rows_is_returned(db):
    hear("due")
    with machine_at(NOON) as machine:
        book()
        assert machine.process() == 1  # the confirmation: this test never commits
        assert machine.advance(days=2) == 0
        assert machine.advance(days=2) == 2  # the event "checkin_due" and its callback


def test_a_scheduled_event_is_seen_at_exactly_its_time(machine):
    hear("due")
    odd = timedelta(days=2, hours=3, microseconds=123_457)
    stay = book(odd)
    machine.advance_to(NOON + odd - timedelta(microseconds=1))
    assert_not_occurred(DUE, stay)
    assert effects() == []
    machine.advance(timedelta(microseconds=1))
    assert_occurred(DUE, stay, times=1)
    machine.advance(days=30)
    assert effects() == [f"due {odd}"]
    assert event_of(stay, DUE).occurred_at == NOON + odd


def test_offsets_are_met_before_and_after_in_one_go(machine):
    for offset in (-DAY, -HOUR, HOUR, relativedelta(days=1)):
        hear(f"offset {offset!r}", offset=offset)
    hear("due")
    book(3 * DAY)
    machine.advance(days=10)
    assert [each.rsplit(maxsplit=3)[-3:] for each in effects()] == [
        ["2", "days,", "0:00:00"],
        ["2", "days,", "23:00:00"],
        ["3", "days,", "0:00:00"],
        ["3", "days,", "1:00:00"],
        ["4", "days,", "0:00:00"],
    ]


def test_two_entities_are_met_in_the_order_of_time(machine):
    @on_event(DUE, name="who")
    def who(event):
        leave(f"{event.entity.note} {stamp()}")

    for note, ahead in (("third", 3 * HOUR), ("first", HOUR), ("second", 2 * HOUR)):
        book(ahead, note=note)
    machine.advance(days=1)
    assert effects() == ["first 1:00:00", "second 2:00:00", "third 3:00:00"]


def test_a_date_that_is_moved_on_the_way_is_met_where_it_was_moved_to(machine):
    hear("due")

    @on_event(DUE, offset=-HOUR, name="postpone")
    def postpone(event):
        event.entity.checkin_at += 2 * DAY
        event.entity.save()
        leave(f"postponed {stamp()}")

    book(DAY)
    machine.advance(days=10)
    assert effects() == ["postponed 23:00:00", "due 3 days, 0:00:00"]


def test_what_a_callback_saves_occurs_at_the_same_moment(machine):
    @on_event(DUE, name="upload")
    def upload(event):
        Document.objects.create(reservation=event.entity)

    hear("uploaded", "document_uploaded")
    book(DAY)
    machine.advance(days=2)
    assert effects() == ["uploaded 1 day, 0:00:00"]


def test_retries_come_after_exactly_their_backoff(machine):
    @on_event(DUE, name="stubborn", retry=Retry(max_attempts=4, base_delay=10 * SECOND, backoff_factor=3))
    def stubborn(event):
        seen.append(stamp())
        leave("rolled back")
        raise RuntimeError(f"try {len(seen)}")

    seen = []
    book(DAY)
    machine.advance(days=2)
    assert seen == ["1 day, 0:00:00", "1 day, 0:00:10", "1 day, 0:00:40", "1 day, 0:02:10"]
    row = the_execution(callback="stubborn")
    assert (row.status, row.attempt) == ("failed", 4)
    assert [str(error) for error in machine.errors] == ["try 1", "try 2", "try 3", "try 4"]
    assert effects() == []


def test_a_step_that_breaks_a_constraint_rolls_back_and_is_tried_again(machine):
    @workflow("clash")
    class Clash:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, retry=Retry(max_attempts=2, base_delay=MINUTE))
        def first(self):
            self.context.tries += 1
            leave(f"try {self.context.tries}")
            ticket = Ticket.objects.create(title="new")
            if self.context.tries == 1:
                with connection.cursor() as cursor:  # raw SQL: save() would use a savepoint
                    quote = connection.ops.quote_name
                    table = quote(Ticket._meta.db_table)
                    cursor.execute(f"INSERT INTO {table} SELECT * FROM {table} WHERE title = %s", [ticket.title])
            return complete()

    engine.start("clash")
    machine.process()
    assert (effects(), Ticket.objects.count()) == ([], 0)
    machine.advance(minutes=1)
    (run,) = runs_of("clash")
    assert (run.status, history(run)) == ("completed", [("first", 1, "error"), ("first", 2, "complete")])
    assert (effects(), Ticket.objects.count()) == (["try 2"], 1)
    assert [type(error) for error in machine.errors] == [IntegrityError]


def test_sleeps_and_timeouts_of_waits(machine):
    @workflow("patience")
    class Patience:
        class Context(BaseModel):
            pass

        @step(start=True)
        def doze(self):
            leave(f"doze {stamp()}")
            return sleep(3 * DAY, then=self.ask)

        @step()
        def ask(self):
            leave(f"ask {stamp()}")
            return wait("answer", timeout=5 * HOUR, on_timeout=self.give_up, then=self.thank)

        @step()
        def thank(self):
            leave(f"thank {stamp()}")
            return complete()

        @step()
        def give_up(self):
            leave(f"give up {stamp()} {get_wake().reason}")
            return sleep(until=NOON + 10 * DAY, then=self.thank)

    engine.start("patience")
    machine.advance(days=30)
    assert effects() == [
        "doze 0:00:00",
        "ask 3 days, 0:00:00",
        "give up 3 days, 5:00:00 timeout",
        "thank 10 days, 0:00:00",
    ]
    run = engine.start("patience")
    machine.advance(days=3, hours=1)
    engine.signal("answer")
    machine.process()
    run.refresh_from_db()
    assert run.status == "completed"
    assert run.finished_at == machine.now == NOON + 33 * DAY + HOUR


def test_a_planned_workflow_waits_for_a_document(machine):
    @event_workflow(DUE, offset=-2 * DAY, name="papers")
    class Papers:
        class Context(BaseModel):
            stay: int
            kind: str = ""

        @classmethod
        def create_context(cls, event):
            return cls.Context(stay=event.entity.pk)

        @step(start=True)
        def ask(self):
            leave(f"ask {stamp()}")
            return wait_for_event(
                "document_uploaded",
                match={"reservation_id": "{{ ctx.stay }}"},
                timeout=DAY,
                on_timeout=self.chase,
                then=self.thank,
            )

        @step()
        def chase(self):
            leave(f"chase {stamp()}")
            return fail("no papers")

        @step()
        def thank(self):
            leave(f"{self.context.kind} {stamp()}")
            return complete()

    good, bad = book(5 * DAY), book(5 * DAY)
    gone = book(4 * DAY)
    machine.advance(days=1)
    assert [run.status for run in runs_of("papers")] == ["waiting"] * 3
    gone.status = "cancelled"
    gone.save()
    assert [run.status for run in runs_of(Papers, gone)] == ["withdrawn"]
    machine.advance(days=2, hours=3)
    Document.objects.create(reservation=good)
    machine.advance(days=10)
    assert effects() == [
        "ask 3 days, 0:00:00",
        "ask 3 days, 0:00:00",
        "passport 3 days, 3:00:00",
        "chase 4 days, 0:00:00",
    ]
    assert [run.status for run in runs_of(Papers, good)] == ["completed"]
    assert [run.error for run in runs_of(Papers, bad)] == ["no papers"]
    assert {run.status for run in runs_of("papers")} == {"completed", "failed", "withdrawn"}


def test_the_example_of_the_guide(machine):
    @event_workflow(DUE, offset=-3 * DAY, name="reminder")
    class Reminder:
        class Context(BaseModel):
            pass

        @step(start=True)
        def remind(self):
            leave("reminded")
            return complete()

    stay = book(5 * DAY)
    machine.advance(days=2)
    assert [run.status for run in runs_of("reminder", stay)] == ["completed"]
    assert_not_occurred(DUE, stay)
    stay.checkin_at += DAY
    stay.save()
    machine.advance(days=4)
    assert_occurred(DUE, stay, times=1)
    assert effects() == ["reminded"]


def test_a_date_that_was_changed_behind_djangos_back_is_found_by_poll_due(machine):
    hear("due")
    stay = book(5 * DAY)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=NOON + MINUTE)
    machine.advance(minutes=2)
    assert_not_occurred(DUE, stay)
    poll_due(machine.now)
    machine.process()
    assert_occurred(DUE, stay, times=1)
    assert effects() == ["due 0:02:00"]


def test_a_deleted_entity_notifies_its_subscribers(machine):
    hear("cancelled", decorator=on_event_cancelled)
    stay = book()
    machine.advance(hours=1)
    stay.delete()
    machine.process()
    assert effects() == ["cancelled 1:00:00"]


def test_what_was_due_before_it_began_is_performed_at_once(db):
    hear("due")
    with machine_at(NOON - 30 * DAY):
        book(20 * DAY)
    with machine_at(NOON) as machine:
        machine.process()
        assert effects() == ["due 0:00:00"]


@pytest.mark.slow
def test_one_moment_for_many_rows(machine):
    hear("due")
    for _ in range(45):  # more rows than one claim takes
        book(DAY)
    machine.advance(days=1)
    assert effects() == ["due 1 day, 0:00:00"] * 45


@pytest.mark.slow
def test_a_month_of_a_guest_is_short(machine):
    """A month takes less than 30 seconds, so nothing waits in real time. ``bench`` measures the exact duration."""

    @workflow("stay")
    class Stay:
        class Context(BaseModel):
            day: int = 0

        @step(start=True)
        def morning(self):
            self.context.day += 1
            leave(f"breakfast {stamp()}")
            return sleep(12 * HOUR, then=self.evening)

        @step()
        def evening(self):
            leave(f"towels {stamp()}")
            return complete() if self.context.day == 30 else sleep(12 * HOUR, then=self.morning)

    for day in range(30):
        hear(f"daily {day}", offset=timedelta(days=day))
    began = time.monotonic()
    book(DAY)
    engine.start("stay")
    machine.advance(days=31)
    took = time.monotonic() - began
    assert took < 30
    assert len(effects()) == 90
    assert runs_of("stay")[0].finished_at == NOON + 29 * DAY + 12 * HOUR


# -- tests that never commit -------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_hooks_of_others_are_left_alone():
    with machine_at(NOON) as machine:
        with transaction.atomic():
            book()
            transaction.on_commit(lambda: leave("hook"))
        machine.advance(days=10)
    assert effects() == []


@pytest.mark.django_db
def test_what_was_rolled_back_does_not_occur():
    hear("confirmed", CONFIRMED)
    with machine_at(NOON) as machine:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            book()
            raise ZeroDivisionError
        assert machine.advance(days=10) == 0
    assert effects() == []


@pytest.mark.django_db
def test_hooks_that_a_test_runs_itself_do_no_harm(django_capture_on_commit_callbacks):
    hear("confirmed", CONFIRMED)
    with machine_at(NOON) as machine:
        with django_capture_on_commit_callbacks(execute=True):
            stay = book()
        assert status_of(stay, CONFIRMED) == "processed"
        machine.process()
    assert effects() == ["confirmed 0:00:00"]


@pytest.mark.django_db
def test_a_save_before_the_machine_was_switched_on():
    hear("confirmed", CONFIRMED)
    stay = book()
    with machine_at() as machine:
        machine.process()
    assert status_of(stay, CONFIRMED) == "processed"
    assert len(effects()) == 1


class StayTest(TestCase):
    """A test case of a project that does not use pytest."""

    @classmethod
    def setUpTestData(cls):
        cls.stay = book(timedelta(hours=5), note="old")

    def setUp(self):
        hear("due")
        self.machine = self.enterContext(machine_at(raise_errors=True))

    def test_one(self):
        self.machine.advance(hours=6)
        self.machine.assert_occurred(DUE, self.stay)
        self.machine.assert_not_occurred("checkout_due", self.stay)
        assert len(effects()) == 1

    def test_another_sees_nothing_of_the_first(self):
        self.check_what_was_saved_for_the_class()

    def test_yet_another(self):
        self.check_what_was_saved_for_the_class()

    def check_what_was_saved_for_the_class(self):
        assert_not_occurred(CONFIRMED, self.stay)
        assert self.machine.process() == 1
        assert_occurred(CONFIRMED, self.stay, times=1)
        assert event_of(self.stay, CONFIRMED).losses == 0
        assert effects() == []


class LongAgoTest(StayTest):
    """The tests start years before the time at which ``setUpTestData`` saved its rows."""

    def setUp(self):
        self.machine = self.enterContext(machine_at("2020-02-29T12:00Z"))

    def test_one(self):
        """Replaces the inherited test: here the check-in is years ahead."""


class StayTransactionTest(TransactionTestCase):
    @machine_at(NOON)
    def test_as_a_decorator(self):
        stay = book()
        assert stay.checkin_at == NOON + 3 * DAY
        assert_occurred(CONFIRMED, stay)
