"""Moments, offsets and accepted dates. The time zone of the tests is Europe/Berlin."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import FR, relativedelta

from django_ai.automation.exceptions import DefinitionError, NaiveDatetimeError
from django_ai.automation.values.clock import aware, check_duration, check_offset, clock_at, later, offset_key, shift

BERLIN = ZoneInfo("Europe/Berlin")


def test_a_fixed_clock_stands():
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    clock = clock_at(moment)
    assert clock() == clock() == moment


def test_a_live_clock_is_aware_and_moves():
    clock = clock_at(None)
    first = clock()
    assert first.tzinfo is not None
    assert clock() >= first


def test_a_naive_moment_is_refused_with_its_name_and_the_fix():
    with pytest.raises(NaiveDatetimeError) as raised:
        aware(datetime(2030, 1, 1, 9), "Reservation.checkin_at")  # noqa: DTZ001
    assert "Reservation.checkin_at" in str(raised.value)
    assert "make_aware" in str(raised.value)
    with pytest.raises(NaiveDatetimeError):
        clock_at(datetime(2030, 1, 1, 9))  # noqa: DTZ001


def test_without_time_zones_naive_is_all_there_is(settings):
    settings.USE_TZ = False
    assert aware(datetime(2030, 1, 1, 9), "x") == datetime(2030, 1, 1, 9)  # noqa: DTZ001
    assert aware(date(2030, 1, 1), "x") == datetime(2030, 1, 1)  # noqa: DTZ001


def test_a_plain_date_is_its_midnight_here():
    assert aware(date(2030, 7, 1), "x") == datetime(2030, 7, 1, tzinfo=BERLIN)
    assert aware(date(2030, 7, 1), "x").astimezone(UTC) == datetime(2030, 6, 30, 22, tzinfo=UTC)


@pytest.mark.parametrize("value", ["2030-01-01", 5, None])
def test_what_is_no_date_is_refused(value):
    with pytest.raises(DefinitionError, match="give a datetime"):
        aware(value, "x")


# Summer time begins in Berlin on 31 March 2030 at 02:00, and ends on 27 October 2030 at 03:00.


def test_a_timedelta_is_elapsed_time_across_summer_time():
    before = datetime(2030, 3, 30, 15, tzinfo=BERLIN)
    assert shift(before.astimezone(UTC), timedelta(days=1)).astimezone(BERLIN).hour == 16


def test_a_relativedelta_is_wall_clock_time_across_summer_time():
    before = datetime(2030, 3, 30, 15, tzinfo=BERLIN)
    after = shift(before.astimezone(UTC), relativedelta(days=1)).astimezone(BERLIN)
    assert (after.day, after.hour) == (31, 15)
    assert shift(after, relativedelta(days=-1)) == before


def test_one_day_back_over_the_end_of_summer_time():
    after = datetime(2030, 10, 27, 15, tzinfo=BERLIN)
    assert shift(after.astimezone(UTC), relativedelta(days=-1)) == datetime(2030, 10, 26, 15, tzinfo=BERLIN)
    assert shift(after.astimezone(UTC), timedelta(days=-1)).astimezone(BERLIN).hour == 16


def test_a_wall_clock_time_that_does_not_exist_becomes_one_that_does():
    found = shift(datetime(2030, 3, 30, 2, 30, tzinfo=BERLIN), relativedelta(days=1))
    assert found.astimezone(BERLIN).replace(tzinfo=None) == datetime(2030, 3, 31, 3, 30)  # noqa: DTZ001


def test_months_end_where_they_end():
    last = datetime(2030, 3, 31, 12, tzinfo=BERLIN)
    assert shift(last, relativedelta(months=-1)) == datetime(2030, 2, 28, 12, tzinfo=BERLIN)
    assert shift(datetime(2028, 1, 31, 12, tzinfo=BERLIN), relativedelta(months=1)) == datetime(
        2028, 2, 29, 12, tzinfo=BERLIN
    )


@pytest.mark.parametrize("nothing", [None, timedelta(0), relativedelta()])
def test_no_offset_is_no_offset(nothing):
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    assert shift(moment, nothing) is moment
    assert offset_key(nothing) == ""


def test_equal_offsets_have_equal_keys():
    assert offset_key(timedelta(minutes=60)) == offset_key(timedelta(hours=1))
    assert offset_key(relativedelta(hours=24)) == offset_key(relativedelta(days=1))


def test_different_offsets_have_different_keys():
    offsets = [
        timedelta(hours=1),
        timedelta(hours=-1),
        timedelta(microseconds=1),
        timedelta(days=1),
        relativedelta(days=1),
        relativedelta(days=-1),
        relativedelta(day=1),
        relativedelta(hour=0),
        relativedelta(hours=1),
        relativedelta(months=1),
        relativedelta(weekday=FR),
        relativedelta(weekday=FR(-1)),
    ]
    assert len({offset_key(each) for each in offsets}) == len(offsets)


def test_midnight_of_the_day_is_an_offset():
    moment = datetime(2030, 1, 1, 15, tzinfo=BERLIN)
    midnight = relativedelta(hour=0, minute=0)
    assert shift(moment, midnight) == datetime(2030, 1, 1, tzinfo=BERLIN)
    assert offset_key(midnight) != ""


@pytest.mark.parametrize("wrong", [60, "1h", 1.5])
def test_an_offset_that_is_a_bare_number_is_refused(wrong):
    with pytest.raises(DefinitionError, match="timedelta or a relativedelta"):
        check_offset(wrong, "@on_event('x')")


@pytest.mark.parametrize("wrong", [60, timedelta(0), timedelta(seconds=-1), None])
def test_a_duration_is_longer_than_zero(wrong):
    with pytest.raises(DefinitionError):
        check_duration(wrong, "timeout")


def test_a_timedelta_is_elapsed_time_in_whatever_zone_the_date_came():
    moment = datetime(2030, 3, 31, 15, tzinfo=BERLIN)  # the day on which the clocks go forward
    assert later(moment, -timedelta(days=1)) == datetime(2030, 3, 30, 13, tzinfo=UTC)
    assert shift(moment, -timedelta(days=1)) == datetime(2030, 3, 30, 13, tzinfo=UTC)
    assert later(datetime.max.replace(tzinfo=BERLIN), timedelta(days=1)).year == 9999
