"""Offsets: callbacks before and after the date of an event, each called once, at its own time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from dateutil.relativedelta import relativedelta

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.queues.runtimes.tasks import poll_due
from tests.support.rows import effects, event_of, leave
from tests.support.scheduled_events import book

pytestmark = pytest.mark.django_db(transaction=True)

DUE = "checkin_due"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def heard():
    @on_event(DUE, name="hear")
    def hear(event):
        leave(f"due {event.entity_id}")


def listen(offset, name="offset"):
    @on_event(DUE, offset=offset, name=name)
    def handler(event):
        leave(name)


@pytest.mark.parametrize(
    "offset",
    [
        timedelta(hours=-3),
        timedelta(hours=3),
        timedelta(days=-2),
        relativedelta(hours=-3),
        relativedelta(days=-2),
        relativedelta(days=2),
        relativedelta(months=1),
        relativedelta(hour=0),
    ],
)
def test_an_offset_fires_at_its_own_time_once(offset, clock, work):
    listen(offset)
    stay = book(clock, ahead=3 * DAY)
    when = stay.checkin_at + offset if isinstance(offset, timedelta) else None
    if when is None:
        from django.utils import timezone

        when = timezone.localtime(stay.checkin_at) + offset
    clock.now = when - timedelta(seconds=1)
    work()
    assert "offset" not in effects()
    clock.now = when
    work()
    assert effects().count("offset") == 1
    clock.now = stay.checkin_at + 60 * DAY
    work()
    assert sorted(effects()) == sorted(["offset", f"due {stay.pk}"])


def test_offsets_of_both_signs_come_in_order(clock, work):
    for hours in (2, -1, 1, -2):
        listen(timedelta(hours=hours), f"{hours:+d}")
    stay = book(clock, ahead=3 * HOUR)
    for _ in range(6):
        clock.tick(HOUR)
        work()
    assert effects() == ["-2", "-1", f"due {stay.pk}", "+1", "+2"]


def test_all_of_it_after_an_outage_comes_in_order(clock, work):
    for hours in (2, -1, 1, -2):
        listen(timedelta(hours=hours), f"{hours:+d}")
    stay = book(clock, ahead=3 * HOUR)
    clock.tick(10 * DAY)
    work()
    assert effects() == ["-2", "-1", f"due {stay.pk}", "+1", "+2"]


def test_an_offset_moves_with_the_date(clock, work):
    listen(-HOUR)
    stay = book(clock, ahead=2 * HOUR)
    stay.checkin_at += DAY
    stay.save()
    clock.tick(DAY + HOUR - timedelta(seconds=1))
    work()
    assert effects() == []
    clock.tick(timedelta(seconds=1))
    work()
    assert effects() == ["offset"]


def test_an_offset_that_has_fired_does_not_fire_again_when_the_date_moves(clock, work):
    listen(-HOUR)
    stay = book(clock, ahead=2 * HOUR)
    clock.tick(HOUR)
    work()
    stay.checkin_at += 2 * DAY
    stay.save()
    clock.tick(2 * DAY)
    work()
    assert effects() == ["offset"]
    clock.tick(HOUR)
    work()
    assert effects() == ["offset", f"due {stay.pk}"]


def test_an_offset_after_the_event_still_follows_its_date(clock, work):
    listen(DAY)
    stay = book(clock)
    clock.tick(HOUR)
    work()
    stay.checkin_at += 2 * DAY
    stay.save()
    clock.tick(DAY)
    work()
    assert effects() == [f"due {stay.pk}"]
    clock.tick(2 * DAY)
    work()
    assert effects() == [f"due {stay.pk}", "offset"]


def test_a_negative_offset_of_a_late_booking_runs_at_once(clock, work):
    listen(-3 * HOUR)
    stay = book(clock)
    work()
    assert effects() == ["offset"]
    clock.tick(HOUR)
    work()
    assert effects() == ["offset", f"due {stay.pk}"]


def test_the_condition_of_the_moment_decides_for_an_offset(clock, work):
    listen(-HOUR)
    listen(HOUR, "after")
    stay = book(clock, ahead=2 * HOUR, status="pending")
    clock.tick(HOUR)
    work()
    assert effects() == []
    stay.status = "confirmed"
    stay.save()
    work()
    assert effects() == ["offset"]
    clock.tick(HOUR)
    work()
    stay.status = "cancelled"
    stay.save()
    clock.tick(HOUR)
    work()
    assert effects() == ["offset", f"due {stay.pk}", "after"]  # an event that has occurred keeps its later offsets


def test_an_offset_goes_with_a_deleted_entity(clock, work):
    listen(-HOUR)
    listen(HOUR, "after")
    stay = book(clock, ahead=2 * HOUR)
    stay.delete()
    clock.tick(DAY)
    work()
    assert effects() == []


def test_an_offset_after_the_event_goes_with_an_entity_that_was_deleted_since(clock, work):
    listen(HOUR)
    stay = book(clock)
    clock.tick(HOUR)
    work()
    stay.delete()
    clock.tick(DAY)
    work()
    assert len(effects()) == 1


def test_an_offset_from_an_immediate_event_counts_from_its_occurrence(clock, work):
    @on_event("reservation_confirmed", offset=HOUR)
    def later(event):
        leave("an hour after the confirmation")

    stay = book(clock, status="pending", checkin_at=None)
    clock.tick(DAY)
    stay.status = "confirmed"
    stay.save()
    clock.tick(HOUR - timedelta(seconds=1))
    work()
    assert effects() == []
    clock.tick(timedelta(seconds=1))
    work()
    assert effects() == ["an hour after the confirmation"]


@pytest.mark.exact_times
def test_an_offset_that_a_deployment_adds_is_wanted_of_events_that_are_pending(clock, work):
    stay = book(clock)
    assert event_of(stay, DUE).wake_at == clock() + HOUR
    listen(-timedelta(minutes=30))
    clock.tick(timedelta(minutes=20))
    poll_due(clock())
    assert effects() == []
    clock.tick(timedelta(minutes=10))
    work()
    assert effects() == ["offset"]


def test_two_functions_on_one_offset_both_run(clock, work):
    listen(-HOUR, "one")
    listen(-HOUR, "two")
    book(clock, ahead=2 * HOUR)
    clock.tick(HOUR)
    work()
    assert sorted(effects()) == ["one", "two"]
