"""The time machine: days in milliseconds, and everything that is due on the way at its own time.

What a test lives through must not depend on whether it commits: ``machine`` runs each test in a TransactionTestCase's
database and in a TestCase's.
"""

from __future__ import annotations

import datetime as real
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.db import IntegrityError, connection, connections, transaction
from django.test import TestCase, TransactionTestCase
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation.agents.core import agent, handler
from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.exceptions import AutomationError, DefinitionError, NaiveDatetimeError, UnknownWorkflowError
from django_ai.automation.queues import notifier
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.queues.signals import attempt_finished, perform_failed, row_parked
from django_ai.automation.testing import (
    ParkedRowError,
    TimeMachine,
    assert_not_occurred,
    assert_occurred,
    assertions,
    errors,
    plugin,
    runs_of,
)
from django_ai.automation.testing import machine as machine_module
from django_ai.automation.testing import time_machine as machine_at
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_wake,
    goto,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Effect, Guest, Reservation, Suite, Ticket, VipStay
from tests.support.rows import effects, event_of, history, leave, status_of, the_execution

time_machine = plugin.time_machine  # the fixture, as a conftest would import it

DUE, CONFIRMED = "checkin_due", "reservation_confirmed"
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)


# Marks, not fixtures asked for by name: pytest-django makes the databases that the marks of the chosen tests need.
@pytest.fixture(
    params=[
        pytest.param("commits", marks=pytest.mark.django_db(transaction=True)),
        pytest.param("never commits", marks=pytest.mark.django_db),
    ]
)
def machine(request):
    with machine_at(NOON) as found:
        yield found


def book(ahead=3 * DAY, **values) -> Reservation:
    return Reservation.objects.create(**{"status": "confirmed", "checkin_at": timezone.now() + ahead, **values})


def hear(name, event=DUE, decorator=on_event, **options):
    """Let a callback leave its name and the moment at which it ran."""

    @decorator(event, name=name, **options)
    def handler(event):
        leave(f"{name} {stamp()}")


def stamp(moment=None) -> str:
    """Return how long after noon it is."""
    return str((moment or timezone.now()) - NOON)


# -- time --------------------------------------------------------------------------------------------------------------


def test_time_stands_until_it_is_moved(machine):
    assert machine.now == NOON == timezone.now() == datetime.now(UTC)
    assert time.time() == NOON.timestamp()
    time.sleep(0.002)
    assert timezone.now() == NOON
    machine.advance(hours=1, seconds=30)
    assert machine.now == NOON + HOUR + 30 * SECOND == timezone.now()
    machine.advance(DAY)
    machine.advance_to(NOON + 3 * DAY)
    assert machine.now == NOON + 3 * DAY
    machine.advance_to("2030-01-11T13:00+01:00")
    assert machine.now == NOON + 4 * DAY
    machine.advance(timedelta(0))
    assert machine.now == NOON + 4 * DAY


def test_the_real_time_comes_back_and_begins_at_the_present():
    real_now = real.datetime.now(UTC)
    with machine_at() as machine:
        assert timedelta(0) <= machine.now - real_now < 10 * SECOND
        assert timezone.now() == timezone.now()
    first = timezone.now()
    time.sleep(0.001)
    assert timezone.now() > first


def test_every_microsecond_is_met_exactly(db):
    moments = [NOON + timedelta(microseconds=number * 7_919_117 + number) for number in range(2000)]
    with machine_at(moments[0]) as machine:
        for moment in moments:
            machine._travel(moment)
            assert timezone.now() == moment
            assert timezone.now().isoformat() == moment.isoformat()


def test_the_time_zone_of_the_process_stays(machine):
    before = os.environ.get("TZ"), time.tzname
    machine.advance_to("2030-07-01T12:00+02:00")
    assert (os.environ.get("TZ"), time.tzname) == before
    assert timezone.localtime().isoformat() == "2030-07-01T12:00:00+02:00"


def test_a_day_on_the_wall_is_not_always_24_hours(db):
    with machine_at("2030-03-30T12:00+01:00") as machine:  # summer time begins the night after
        machine.advance(relativedelta(days=1))
        assert machine.now.isoformat() == "2030-03-31T10:00:00+00:00"
        machine.advance(days=1)
        assert machine.now.isoformat() == "2030-04-01T10:00:00+00:00"
        machine.advance(relativedelta(months=1))
        assert timezone.localtime().isoformat() == "2030-05-01T12:00:00+02:00"


def test_dates_without_a_time_zone_are_refused(db):
    naive = datetime(2030, 1, 7, 12)  # noqa: DTZ001
    for start in (naive, "2030-01-07 12:00"):
        with pytest.raises(NaiveDatetimeError, match="no time zone"), machine_at(start):
            pass
    with machine_at(NOON) as machine:
        for target in (naive + DAY, "2030-01-08T12:00"):
            with pytest.raises(NaiveDatetimeError, match="no time zone"):
                machine.advance_to(target)
        assert machine.now == NOON


def test_without_use_tz_everything_is_naive(db, settings):
    settings.USE_TZ = False
    noon = datetime(2030, 1, 7, 12)  # noqa: DTZ001
    with machine_at(noon) as machine:
        assert machine.now == noon == timezone.now()
        machine.advance(hours=1)
        machine.advance_to(noon + DAY)
        assert machine.now == noon + DAY
        machine.advance_to("2030-01-09T12:00+01:00")  # Berlin is the time zone of the settings
        assert machine.now == noon + 2 * DAY


def test_time_does_not_go_back(machine):
    for go in (lambda: machine.advance(hours=-1), lambda: machine.advance_to(NOON - SECOND)):
        with pytest.raises(ValueError, match="only goes forward"):
            go()
    assert machine.now == NOON


@pytest.mark.parametrize("wrong", ["tomorrow", 5, None])
def test_what_is_no_date_is_refused(wrong, db):
    with machine_at(NOON) as machine, pytest.raises(DefinitionError):
        machine.advance_to(wrong)


def test_advance_wants_a_duration(machine):
    for go in (lambda: machine.advance(), lambda: machine.advance(DAY, hours=1)):
        with pytest.raises(DefinitionError, match="either a timedelta or units"):
            go()
    for wrong in (5, 0, "1 day", NOON):
        with pytest.raises(DefinitionError, match=r"a timedelta, a relativedelta or units.*days=1"):
            machine.advance(wrong)
    assert machine.now == NOON
    with pytest.raises(TypeError):
        machine.advance(fortnights=1)


def test_there_is_one_machine_at_a_time(machine):
    with pytest.raises(AutomationError, match="on already"), machine_at():
        pass
    assert machine.now == NOON


def test_after_an_error_everything_is_as_before(db):
    before = notifier.InlineNotifier()
    notifier.set_notifier(before)
    try:
        with pytest.raises(ZeroDivisionError), machine_at(NOON):
            assert isinstance(notifier.get_notifier(), notifier.SilentNotifier)
            raise ZeroDivisionError
        assert notifier.get_notifier() is before
        assert abs(timezone.now() - NOON) > DAY
        with machine_at(NOON):
            pass
    finally:
        notifier.set_notifier(None)


@pytest.mark.django_db(transaction=True)
def test_commits_ring_nobody_while_it_is_on(settings):
    settings.AUTOMATION = {"RUNTIME": "inline"}
    hear("due", CONFIRMED)
    with machine_at() as machine:
        book()
        assert effects() == []
        machine.process()
        assert len(effects()) == 1
    book()
    assert len(effects()) == 2


def test_what_stamps_rows_travels(machine):
    hear("due")
    stay = book()
    machine.advance(days=3, hours=5)
    (effect,) = Effect.objects.all()
    assert effect.at == stay.checkin_at  # auto_now_add
    event = event_of(stay, DUE)
    assert (event.event_created_at, event.occurred_at) == (NOON, stay.checkin_at)  # default=timezone.now
    row = the_execution(event=event)
    assert (row.created_at, row.started_at, row.finished_at) == (stay.checkin_at,) * 3
    machine.advance(hours=1)
    leave("later")
    assert Effect.objects.get(name="later").at == machine.now


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


def test_the_number_of_rows_is_told(db):
    hear("due")
    with machine_at(NOON) as machine:
        book()
        assert machine.process() == 1  # the confirmation, which waits for no commit here
        assert machine.advance(days=2) == 0
        assert machine.advance(days=2) == 2  # the date, and its callback


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
                with connection.cursor() as cursor:  # straight into the table: the save would hide it in a savepoint
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


def test_a_date_that_was_changed_behind_djangos_back_is_found_by_the_chore(machine):
    hear("due")
    stay = book(5 * DAY)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=NOON + MINUTE)
    machine.advance(minutes=2)
    assert_not_occurred(DUE, stay)
    poll_due(machine.now)
    machine.process()
    assert_occurred(DUE, stay, times=1)
    assert effects() == ["due 0:02:00"]


def test_a_deleted_entity_tells_those_who_hear_of_it(machine):
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


def test_one_moment_for_many_rows(machine):
    hear("due")
    for _ in range(45):  # more than one claim takes
        book(DAY)
    machine.advance(days=1)
    assert effects() == ["due 1 day, 0:00:00"] * 45


def test_a_month_of_a_guest_is_short(machine):
    """Days of real waiting must not hide in it. The figure itself is bench's affair."""

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


# -- when nothing commits ----------------------------------------------------------------------------------------------


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
    """As a project writes it, without pytest."""

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
    """The class was set up years after the moment at which its tests begin."""

    def setUp(self):
        self.machine = self.enterContext(machine_at("2020-02-29T12:00Z"))

    def test_one(self):
        """Its date is years ahead."""


class StayTransactionTest(TransactionTestCase):
    @machine_at(NOON)
    def test_as_a_decorator(self):
        stay = book()
        assert stay.checkin_at == NOON + 3 * DAY
        assert_occurred(CONFIRMED, stay)


# -- errors ------------------------------------------------------------------------------------------------------------


def trip(name="trip", event=CONFIRMED, **options):
    @on_event(event, name=name, **{"retry": Retry(max_attempts=1), **options})
    def handler(event):
        raise RuntimeError(f"{name} {event.entity.note}")


def test_errors_are_kept_and_raised_only_when_asked_for(machine):
    trip()
    book(note="a")
    machine.process()
    assert [str(error) for error in machine.errors] == ["trip a"]
    machine.process(raise_errors=True)  # what a tolerant call has seen is not raised later
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
    machine.process(raise_errors=True)  # once
    with pytest.raises(ExceptionGroup) as group:
        machine.advance(hours=1, raise_errors=True)
    # The last of five parks it: its own error says more than that.
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


@pytest.mark.parametrize("kind", ["sleep", "goto"])
def test_running_in_circles_is_an_error_that_names_the_row(kind, machine, monkeypatch):
    monkeypatch.setattr(errors, "TRIES", 50)

    @workflow("circle")
    class Circle:
        class Context(BaseModel):
            pass

        @step(start=True)
        def around(self):
            return sleep(timedelta(0)) if kind == "sleep" else goto(self.around)

    engine.start("circle")
    for _ in range(2):
        with pytest.raises(AutomationError, match=r"no end of what is due.*circle #"):
            machine.advance(hours=1)
        assert machine.now == NOON


@pytest.mark.parametrize(("rounds", "rows", "tries"), [(0, 1, 50), (0, 500, 1), (50, 0, 0)])
def test_what_counts_as_a_circle(rounds, rows, tries, monkeypatch):
    """One row again and again, or ever new rows, or rows that cannot be taken at all."""
    monkeypatch.setattr(errors, "TRIES", 50)
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
    with pytest.raises(AutomationError, match="no end of what is due" + ".*circle #" * bool(rows)):
        go([], 1)
    go(attempts[1:], 1)  # and begins anew


@pytest.mark.django_db(transaction=True)
def test_a_row_that_another_connection_holds_is_no_endless_wait(monkeypatch):
    if connection.vendor != "postgresql":
        pytest.skip("rows have no locks of their own here")
    monkeypatch.setattr(errors, "TRIES", 50)
    with machine_at(NOON) as machine:
        book(DAY)
        other = connections.create_connection("default")
        try:
            other.set_autocommit(False)
            other.cursor().execute(f"SELECT * FROM {Event._meta.db_table} FOR UPDATE")
            with pytest.raises(AutomationError, match=r"no end of what is due.*checkin_due"):
                machine.advance(days=2)
            assert machine.now == NOON + DAY
        finally:
            other.close()
        machine.advance(days=2)
    assert_occurred(DUE)


def test_a_long_way_is_no_circle(machine, monkeypatch):
    monkeypatch.setattr(errors, "TRIES", 50)

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
    with pytest.raises(AutomationError, match="Only the test moves it"):
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


# -- assertions --------------------------------------------------------------------------------------------------------


def test_assert_occurred(machine):
    stay, other = book(DAY), book(9 * DAY)
    machine.advance(days=1)
    assert_occurred(DUE)
    assert_occurred(DUE, times=1)
    assert_occurred(DUE, stay)
    assert_occurred(DUE, stay, times=1)
    assert_occurred(DUE, other, times=0)
    assert_not_occurred(DUE, other)
    assert_not_occurred("checkout_due")
    machine.advance(days=9)
    assert_occurred(DUE, times=2)
    for wrong in (
        lambda: assert_occurred("checkout_due"),
        lambda: assert_occurred(DUE, times=1),
        lambda: assert_occurred(DUE, stay, times=2),
        lambda: assert_occurred(DUE, times=0),
        lambda: assert_not_occurred(DUE),
        lambda: assert_not_occurred(DUE, other),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_what_failures_say(machine):
    stay = book(2 * DAY)
    with pytest.raises(AssertionError) as caught:
        assert_occurred(DUE, stay)
    text = str(caught.value)
    assert f"'checkin_due' of app.Reservation {stay.pk} should have occurred, but it did not." in text
    assert "'checkin_due': pending, at 2030-01-09T12:00:00+00:00, due 2030-01-09T12:00:00+00:00" in text
    assert "'guest_docs_uploaded': pending, its condition is false" in text
    confirmed = "occurred 2030-01-07T12:00" if connection.in_atomic_block is False else "waits for the commit"
    assert confirmed in text

    machine.advance(days=3)
    with pytest.raises(AssertionError, match=r"should have occurred twice, but once\.\nThere is:") as caught:
        assert_occurred(DUE, times=2)
    assert f"'checkin_due' of app.reservation {stay.pk}: processed, occurred 2030-01-09T12:00" in str(caught.value)
    with pytest.raises(AssertionError, match=r"should not have occurred, but it did, once\."):
        assert_not_occurred(DUE, stay)


def test_failures_say_when_nothing_was_recorded(db):
    guest_of_nobody = Reservation(pk=77)
    with pytest.raises(AssertionError, match="No event was recorded at all"):
        assert_occurred(DUE)
    with pytest.raises(AssertionError, match="No event was recorded: was it saved through Django"):
        assert_occurred(DUE, guest_of_nobody)


def test_failures_do_not_fill_the_screen(db):
    for _ in range(10):
        book()
    with pytest.raises(AssertionError, match=r"\.\.\. and 20 more") as caught:
        assert_occurred(DUE)
    assert len(str(caught.value).splitlines()) == 23


def test_the_error_of_a_parked_event_is_told(machine, declare):
    declare(Ticket, EventDefinition("ticket_due", date_field="due_at", payload=lambda ticket: {"n": 1 / 0}))
    ticket = Ticket.objects.create(due_at=NOON + HOUR)
    machine.advance(hours=2)
    with pytest.raises(AssertionError, match=r"parked, at 2030-01-07T13:00:00\+00:00, ZeroDivisionError: division"):
        assert_occurred("ticket_due", ticket)


@pytest.mark.parametrize("check", [assert_occurred, assert_not_occurred])
def test_an_event_that_nobody_declares_fails_with_the_nearest_name(check, db):
    with pytest.raises(AssertionError, match=r"No model declares .* 'checkin_deu'\. Did you mean 'checkin_due'\?"):
        check("checkin_deu")
    with pytest.raises(
        AssertionError, match=r"app\.Reservation does not declare the event 'ticket_due'\. Did you mean"
    ):
        check("ticket_due", book())
    with pytest.raises(AssertionError, match=r"app\.Guest does not declare the event 'checkin_due'. Declared: none"):
        check("checkin_due", Guest.objects.create())


def test_families(machine):
    suite = Suite.objects.create(number="1", is_clean=True)
    vip = VipStay.objects.create(status="confirmed", note="here")
    machine.process()
    assert_occurred("room_cleaned", suite)
    assert_occurred("room_cleaned", suite.room_ptr)
    assert_occurred("suite_opened", suite)
    assert_occurred("vip_arrived", vip)
    assert_occurred(CONFIRMED, Reservation.objects.get(pk=vip.pk))


def test_names_that_mean_many_events(machine, declare):
    declare(Ticket, EventDefinition("ticket_closed:{{ instance.title }}", condition=lambda ticket: not ticket.open))
    done, undone = Ticket.objects.create(title="a", open=False), Ticket.objects.create(title="b")
    machine.process()
    assert_occurred("ticket_closed:a")
    assert_occurred("ticket_closed:a", done, times=1)
    assert_occurred("ticket_closed:*", times=1)
    assert_occurred("ticket_closed:{{ instance.title }}", times=1)
    assert_not_occurred("ticket_closed:b")
    assert_not_occurred("ticket_closed:c")
    assert_not_occurred("*", undone)
    with pytest.raises(AssertionError, match="No model declares"):
        assert_not_occurred("ticked_closed:*")


def test_an_entity_without_a_primary_key_is_refused(db):
    stay = book()
    stay.delete()
    for check in (assert_occurred, assert_not_occurred):
        with pytest.raises(DefinitionError, match="no primary key"):
            check(DUE, stay)
    with pytest.raises(DefinitionError, match="must be a model instance"):
        assert_occurred(DUE, 5)


def test_runs_of(machine):
    @event_workflow(CONFIRMED, name="welcome")
    class Welcome:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    one, other = book(), book()
    third = engine.start("welcome")
    machine.process()
    assert runs_of("welcome") == list(WorkflowRun.objects.order_by("pk"))
    assert {run.entity_id for run in runs_of("welcome")} == {str(one.pk), str(other.pk), third.entity_id}
    assert runs_of(Welcome) == runs_of("welcome") == machine.runs_of(Welcome)
    assert [run.entity_id for run in runs_of(Welcome, one)] == [str(one.pk)]
    assert runs_of(Welcome, Guest.objects.create()) == []
    with pytest.raises(UnknownWorkflowError, match="Did you mean 'welcome'"):
        runs_of("welcom")
    with pytest.raises(DefinitionError, match="neither a workflow nor an agent"):
        runs_of(Guest)


def test_runs_of_agents(machine):
    @agent("journey", spawn_on=CONFIRMED)
    class Journey:
        class Context(BaseModel):
            seen: list[str] = []

        @handler(CONFIRMED)
        def begin(self, ctx):
            ctx.seen.append(stamp())

        @handler(DUE, offset=-HOUR)
        def before(self, ctx):
            ctx.seen.append(stamp())
            if len(ctx.seen) == 2:
                raise RuntimeError("stumbles")

    stay, other = book(DAY), book(2 * DAY)
    machine.advance(days=1)
    (run,) = runs_of("journey", stay)
    assert runs_of(Journey) == runs_of("journey") == [run, *runs_of(Journey, other)]
    assert run.data == {"seen": ["0:00:00", "23:00:00", "23:00:01"]}
    assert [str(error) for error in machine.errors] == ["stumbles"]
    with pytest.raises(UnknownWorkflowError, match="No workflow is called 'journy'") as caught:
        runs_of("journy")
    assert "Did you mean 'journey'" in str(caught.value.__cause__)


def test_without_agents_there_are_workflows(monkeypatch, db):
    monkeypatch.setattr(assertions.apps, "is_installed", lambda name: False)
    with pytest.raises(UnknownWorkflowError, match="No workflow is called 'journey'") as caught:
        runs_of("journey")
    assert caught.value.__cause__ is None


# -- pytest ------------------------------------------------------------------------------------------------------------


def python(*arguments, **extra) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own, on the same settings."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=60, check=False, **extra,
    )  # fmt: skip


def test_the_fixture_and_its_marker(tmp_path):
    """In a pytest of its own, beside the package time-machine, whose fixture has the same name."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["django_ai.automation.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(
        f"""
import pytest
from datetime import datetime, UTC
from django_ai.automation.testing import TimeMachine

def test_now(time_machine):
    assert isinstance(time_machine, TimeMachine)
    assert abs(time_machine.now.timestamp() - {time.time()}) < 600

@pytest.mark.time_machine(start="2030-01-07T12:00Z", raise_errors=True)
def test_then(time_machine):
    assert datetime.now(UTC) == time_machine.now == datetime(2030, 1, 7, 12, tzinfo=UTC)
    assert time_machine._raise_errors
"""
    )
    done = python("-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", ".", cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_fixture_can_be_imported(time_machine):
    assert isinstance(time_machine, TimeMachine)
    assert timezone.now() == time_machine.now


def test_the_package_can_be_imported_before_django_is_set_up():
    done = python("-c", "import django_ai.automation.testing.plugin, sys; assert 'django.db' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_is_not_needed_until_it_is():
    done = python(
        "-c",
        "import sys; sys.modules['pytest'] = sys.modules['time_machine'] = None\n"
        "import django; django.setup()\n"
        "from django_ai.automation.testing import TimeMachine, assert_occurred, runs_of, time_machine\n"
        "for _ in range(2):\n"
        "    try: time_machine().__enter__()\n"
        "    except ImportError as error: print(error)\n",
    )
    assert done.stdout.count('pip install "django-ai-automation[testing]"') == 2, done.stdout + done.stderr


def test_a_library_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setattr(machine_module, "version", lambda name: "2.19.0")
    with pytest.raises(ImportError, match=r">= 3, and 2\.19\.0 is installed\. Install it with"), machine_at():
        pass


def test_the_facade_says_what_is_public():
    from django_ai.automation import testing

    assert testing.TimeMachine is TimeMachine
    assert sorted(testing.__all__) == testing.__all__
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError):
        testing.nothing  # noqa: B018
