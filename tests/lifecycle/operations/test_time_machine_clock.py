"""The clock of the time machine: it moves only when the test moves it, and refuses invalid moves."""

from __future__ import annotations

import datetime as real
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.utils import timezone

from django_ai.automation.exceptions import AutomationError, DefinitionError, NaiveDatetimeError
from django_ai.automation.queues import notifier
from django_ai.automation.testing import time_machine as machine_at
from tests.apps.reservations.models import Effect
from tests.support.rows import effects, event_of, leave, the_execution
from tests.support.time_machine import NOON, book, hear

DUE, CONFIRMED = "checkin_due", "reservation_confirmed"
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


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
    with machine_at("2030-03-30T12:00+01:00") as machine:  # summer time begins the following night
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
        with pytest.raises(DefinitionError, match="takes a timedelta or units"):
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
