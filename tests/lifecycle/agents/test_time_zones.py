"""Handlers of agents at offsets on the wall clock of the entity, also for an agent that is spawned late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from dateutil.relativedelta import relativedelta

from django_ai.automation import EventDefinition, agent, handler, register_events
from tests.apps.reservations.models import Trip
from tests.support.agents import Notes
from tests.support.rows import change, effects, leave
from tests.support.trips import book_trip, declare_arrival

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

HOUR = timedelta(hours=1)
EVE = relativedelta(days=-1, hour=18, minute=0)
NOON = relativedelta(hour=12, minute=0)
NEW_YORK, TOKYO = "America/New_York", "Asia/Tokyo"


def keeper(clock, spawn_on):
    @agent("keeper", spawn_on=spawn_on)
    class Keeper:
        Context = Notes

        @handler("arrival", offset=EVE)
        def on_the_eve(self):
            leave(f"eve {clock():%d %H}")

        @handler("arrival", offset=NOON)
        def at_noon(self):
            leave(f"noon {clock():%d %H}")

        @handler("arrival")
        def on_arrival(self):
            leave(f"arrival {clock():%d %H}")


def hours(clock, work, number):
    for _ in range(number):
        work()
        clock.tick(HOUR)


BOOKED = EventDefinition("trip_booked", condition=lambda trip: trip.valid)


@pytest.mark.parametrize(
    ("tz", "expected"),
    [
        (NEW_YORK, ["eve 08 23", "arrival 09 15", "noon 09 17"]),
        (TOKYO, ["eve 09 09", "arrival 09 15", "noon 10 03"]),
        ("", ["eve 08 17", "noon 09 11", "arrival 09 15"]),
    ],
)
def test_handlers_are_called_at_local_times(tz, expected, clock, work):
    declare_arrival()
    register_events(Trip, BOOKED)
    keeper(clock, "trip_booked")
    book_trip(tz, arrives_at=datetime(2030, 1, 9, 15, tzinfo=UTC))
    hours(clock, work, 80)
    assert effects() == expected


def test_handlers_follow_a_change_of_the_zone(clock, work):
    declare_arrival()
    register_events(Trip, BOOKED)
    keeper(clock, "trip_booked")
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 1, 9, 15, tzinfo=UTC))
    hours(clock, work, 24)
    change(trip.hotel, tz="Pacific/Honolulu")
    change(trip, nights=2)
    hours(clock, work, 60)
    assert effects() == ["eve 09 04", "arrival 09 15", "noon 09 22"]


@pytest.mark.parametrize(("tz", "noon"), [(NEW_YORK, ["noon 09 17"]), ("", [])])
def test_an_agent_that_the_arrival_spawns_gets_what_comes_after_it(tz, noon, clock, work):
    """No worker has run for two hours. In New York noon comes after the arrival, in Berlin before it."""
    declare_arrival()
    keeper(clock, "arrival")
    book_trip(tz, arrives_at=datetime(2030, 1, 9, 15, tzinfo=UTC))
    clock.now = datetime(2030, 1, 9, 17, tzinfo=UTC)
    hours(clock, work, 30)
    assert sorted(effects()) == ["arrival 09 17", *noon]


def test_an_agent_that_is_spawned_late_gets_the_milestones_that_have_fired(clock, work):
    declare_arrival()
    register_events(Trip, BOOKED)
    keeper(clock, "trip_booked")
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 1, 9, 15, tzinfo=UTC), valid=False)
    clock.now = datetime(2030, 1, 9, 1, tzinfo=UTC)
    work()
    change(trip, valid=True)
    hours(clock, work, 30)
    assert effects() == ["eve 09 01", "arrival 09 15", "noon 09 17"]
