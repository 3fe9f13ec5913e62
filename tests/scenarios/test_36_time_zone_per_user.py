"""Scenario 36: a request activates the time zone of its user. Dates and offsets still use ``TIME_ZONE``."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.utils import timezone

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.values.clock import aware, shift
from tests.apps.reservations.models import Room
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

ZONES = ["Pacific/Kiritimati", "Asia/Kolkata", "America/Los_Angeles"]


@pytest.mark.parametrize("zone", ZONES)
def test_36_midnight_and_the_wall_clock_are_those_of_time_zone(zone, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    day = date(2030, 3, 31)
    month = relativedelta(months=1)
    midnight = aware(day, "day")
    moved = shift(midnight, month)
    with timezone.override(zone):
        assert aware(day, "day") == midnight
        assert shift(midnight, month) == moved
    assert (midnight.isoformat(), moved.isoformat()) == ("2030-03-31T00:00:00+01:00", "2030-04-29T22:00:00+00:00")


@pytest.mark.parametrize("zone", ZONES)
def test_36_a_save_in_another_time_zone_moves_no_timer(zone, clock):
    day = clock().date() + timedelta(days=3)
    room = Room.objects.create(number="7", inspected_on=day)
    event = Event.objects.of(room).get(event_name="inspection_due")
    with timezone.override(zone):
        room.save()
    again = Event.objects.get(pk=event.pk)
    assert (again.at, again.wake_at) == (event.at, event.wake_at)


def test_36_an_unchanged_date_occurs_once_though_it_may_occur_again(declare, clock, work):
    declare(Room, EventDefinition("inspection_due", date_field="inspected_on", rearm=True))
    on_event("inspection_due", name="inspect")(lambda event: leave("inspected"))
    room = Room.objects.create(number="7", inspected_on=clock().date() + timedelta(days=1))
    clock.tick(timedelta(hours=11, minutes=30))  # after midnight in Berlin, before midnight in Los Angeles
    work()
    assert effects() == ["inspected"]
    for zone in [*ZONES, "America/Adak"]:
        with timezone.override(zone):
            room.save()
            work()
        clock.tick(timedelta(minutes=1))
    clock.tick(timedelta(hours=23))
    work()
    assert effects() == ["inspected"]
    assert Event.objects.of(room).count() == 1
