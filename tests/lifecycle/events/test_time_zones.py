"""Scheduled events in the time zone of their entity: offsets on its wall clock, days, clock changes, and costs."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_ai.automation import on_event, upcoming
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.queues import drain
from django_ai.automation.testing import time_machine
from tests.apps.reservations.models import Hotel, Reservation, Trip
from tests.support.rows import effects, leave
from tests.support.trips import assert_runs_at, book_trip, declare_arrival, listen, the_event

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EVE = relativedelta(days=-1, hour=18, minute=0)
NEW_YORK = "America/New_York"
TOKYO = "Asia/Tokyo"


# In New York the clocks go forward on 10 March 2030 and back on 3 November, in Sydney back on 7 April and forward on
# 6 October, in Tokyo never. The project is in Berlin.
DATES = [
    # Test id, zone, offset, local date of the trip, and expected moment in UTC.
    ("spring, a day before", NEW_YORK, relativedelta(days=-1), (2030, 3, 10, 15), (2030, 3, 9, 20)),
    ("spring, a day after", NEW_YORK, relativedelta(days=1), (2030, 3, 9, 15), (2030, 3, 10, 19)),
    ("spring, a day before, elapsed", NEW_YORK, -DAY, (2030, 3, 10, 15), (2030, 3, 9, 19)),
    ("spring, a day after, elapsed", NEW_YORK, DAY, (2030, 3, 9, 15), (2030, 3, 10, 20)),
    ("to a time that does not exist", NEW_YORK, relativedelta(days=1), (2030, 3, 9, 2, 30), (2030, 3, 10, 7, 30)),
    ("autumn, a day before", NEW_YORK, relativedelta(days=-1), (2030, 11, 3, 15), (2030, 11, 2, 19)),
    ("autumn, a day after", NEW_YORK, relativedelta(days=1), (2030, 11, 2, 15), (2030, 11, 3, 20)),
    ("to a time that comes twice", NEW_YORK, relativedelta(days=1), (2030, 11, 2, 1, 30), (2030, 11, 3, 5, 30)),
    ("a clock change of Berlin alone", NEW_YORK, relativedelta(days=-1), (2030, 3, 31, 15), (2030, 3, 30, 19)),
    ("in the south, in April", "Australia/Sydney", relativedelta(days=1), (2030, 4, 6, 15), (2030, 4, 7, 5)),
    ("in the south, in October", "Australia/Sydney", relativedelta(days=-1), (2030, 10, 6, 15), (2030, 10, 5, 5)),
    ("on the eve at six", NEW_YORK, EVE, (2030, 6, 10, 15), (2030, 6, 9, 22)),
    ("on the eve at six, elsewhere", TOKYO, EVE, (2030, 6, 10, 1), (2030, 6, 9, 9)),
    ("a month before the 31st", TOKYO, relativedelta(months=-1), (2030, 3, 31, 1), (2030, 2, 27, 16)),
    ("a month after the 31st", TOKYO, relativedelta(months=1), (2030, 1, 31, 1), (2030, 2, 27, 16)),
]


@pytest.mark.parametrize("kind", ["callback", "workflow", "handler"])
@pytest.mark.parametrize(("zone", "offset", "wall", "utc"), [row[1:] for row in DATES], ids=[row[0] for row in DATES])
def test_an_offset_counts_on_the_wall_clock_of_the_entity(kind, zone, offset, wall, utc, clock, work):
    clock.now = datetime(2029, 12, 1, tzinfo=UTC)
    declare_arrival()
    listen(kind, offset, clock, work)
    book_trip(zone, arrives_at=datetime(*wall, tzinfo=ZoneInfo(zone)))
    assert_runs_at(datetime(*utc, tzinfo=UTC), clock, work)


DAYS = [
    # Test id, zone, offset, day of the trip, and expected moment in UTC.
    ("at midnight", NEW_YORK, None, (2030, 6, 10), (2030, 6, 10, 4)),
    ("at midnight, elsewhere", TOKYO, None, (2030, 6, 10), (2030, 6, 9, 15)),
    ("far in the east", "Pacific/Kiritimati", None, (2030, 6, 10), (2030, 6, 9, 10)),
    ("far in the west", "Pacific/Pago_Pago", None, (2030, 6, 10), (2030, 6, 10, 11)),
    ("without a zone", "", None, (2030, 6, 10), (2030, 6, 9, 22)),
    ("on the eve at six", NEW_YORK, EVE, (2030, 3, 10), (2030, 3, 9, 23)),
    ("at nine, in spring", NEW_YORK, relativedelta(hour=9), (2030, 3, 10), (2030, 3, 10, 13)),
    ("at nine, in autumn", NEW_YORK, relativedelta(hour=9), (2030, 11, 3), (2030, 11, 3, 14)),
    ("nine hours later, in spring", NEW_YORK, 9 * HOUR, (2030, 3, 10), (2030, 3, 10, 14)),
]


@pytest.mark.parametrize("kind", ["callback", "workflow", "handler"])
@pytest.mark.parametrize(("zone", "offset", "day", "utc"), [row[1:] for row in DAYS], ids=[row[0] for row in DAYS])
def test_a_day_is_a_day_of_the_entity(kind, zone, offset, day, utc, clock, work):
    clock.now = datetime(2029, 12, 1, tzinfo=UTC)
    declare_arrival(date_field="arrives_on")
    listen(kind, offset, clock, work)
    book_trip(zone, arrives_on=date(*day))
    assert_runs_at(datetime(*utc, tzinfo=UTC), clock, work)


@pytest.mark.parametrize(
    ("given", "hour"),
    [
        ("Asia/Kolkata", 12.5),
        (ZoneInfo("Etc/GMT+5"), 23),
        (lambda trip: trip.tz, 9),
        (lambda trip: ZoneInfo(trip.tz), 9),
        (lambda trip: None, 17),
        ("hotel__manager__tz", 17),
    ],
    ids=["fixed", "object", "function", "function of a zone", "function of none", "missing relation"],
)
def test_other_ways_to_name_the_zone(given, hour, clock):
    declare_arrival(given)
    on_event("arrival", offset=EVE)(lambda event: None)
    book_trip(TOKYO, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    assert the_event().wake_at == datetime(2030, 2, 9, tzinfo=UTC) + timedelta(hours=hour)


@pytest.mark.parametrize("tz", ["", None])
def test_no_zone_is_that_of_the_project(tz, clock):
    declare_arrival()
    on_event("arrival", offset=EVE)(lambda event: None)
    book_trip(tz, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    Trip.objects.create(arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    found = Event.objects.values_list("timezone", "wake_at")
    assert set(found) == {("", datetime(2030, 2, 9, 17, tzinfo=UTC))}
    assert str(Event.objects.all()[0].zone) == "Europe/Berlin"


def test_a_subscriber_reads_the_zone_of_the_event(clock, work):
    declare_arrival()
    on_event("arrival")(lambda event: leave(f"{event.at.astimezone(event.zone):%H:%M} {event.timezone}"))
    book_trip(TOKYO, arrives_at=clock() + HOUR)
    clock.tick(HOUR)
    work()
    assert effects() == ["22:00 Asia/Tokyo"]


# -- the clock change itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timezone", [None, "hotel__tz"])
def test_a_date_in_the_repeated_hour_that_is_saved_again_occurs_once(timezone, clock, work):
    declare_arrival(timezone, rearm=True)
    listen("callback", None, clock)
    clock.now = datetime(2030, 10, 20, tzinfo=UTC)
    trip = book_trip("Europe/Berlin", arrives_at=datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")))
    due = datetime(2030, 10, 27, 0, 30, tzinfo=UTC)
    seq = the_event().seq
    trip.save()
    assert the_event().seq == seq
    assert_runs_at(due, clock, work)
    trip.save()
    work()
    assert effects() == [due.isoformat()]
    assert Event.objects.count() == 1


def test_a_day_without_a_midnight_that_is_saved_again_occurs_once(clock, work):
    declare_arrival(date_field="arrives_on", rearm=True)
    listen("callback", None, clock)
    on_event("arrival", offset=9 * HOUR, name="later")(lambda event: leave(clock().isoformat()))
    clock.now = datetime(2021, 3, 20, tzinfo=UTC)
    trip = book_trip("Asia/Beirut", arrives_on=date(2021, 3, 28))  # begins at 1:00
    due = datetime(2021, 3, 27, 22, tzinfo=UTC)
    assert_runs_at(due, clock, work)
    trip.save()
    work()
    clock.now = due + 9 * HOUR
    work()
    assert effects() == [due.isoformat(), (due + 9 * HOUR).isoformat()]
    assert Event.objects.count() == 1


# -- what it costs, and what shows it ----------------------------------------------------------------------------------


@contextmanager
def at_most(extra: int):
    """Assert that the block, in one transaction, runs the statement of the save and at most ``extra`` more."""
    with transaction.atomic():
        Hotel.objects.exists()  # starts the transaction
        with CaptureQueriesContext(connection) as queries:
            yield
        statements = [query["sql"] for query in queries]
        assert len(statements) - 1 <= extra, statements


def test_a_loaded_relation_costs_no_statement(clock):
    declare_arrival()
    on_event("arrival", offset=EVE)(lambda event: None)
    hotel = Hotel.objects.create(tz=NEW_YORK)
    with at_most(1):
        trip = Trip.objects.create(hotel=hotel, arrives_at=clock() + 9 * DAY)
    trip.nights = 2
    with at_most(1):
        trip.save()
    with at_most(1):
        trip.save(update_fields=["nights"])
    trip.arrives_at += HOUR
    with at_most(2):
        trip.save()


def test_workers_read_the_hotels_together_with_the_trips(clock, work, monkeypatch):
    monkeypatch.setattr(drain, "_batch_size", lambda model: 100)  # it depends on how fast the machine is
    declare_arrival()
    on_event("arrival")(lambda event: None)

    def statements(number):
        for _ in range(number):
            book_trip(NEW_YORK, arrives_at=clock() + HOUR)
        clock.tick(HOUR)
        with CaptureQueriesContext(connection) as queries:
            work()
        return sum(Hotel._meta.db_table in query["sql"] for query in queries)

    assert statements(3) == statements(9) == 1


def test_what_is_upcoming_names_the_zone(clock):
    declare_arrival(date_field="arrives_on")
    on_event("arrival", offset=EVE, name="on the eve")(lambda event: None)
    on_event("arrival", offset=-HOUR, name="an hour before")(lambda event: None)
    trip = book_trip(NEW_YORK, arrives_on=date(2030, 2, 10))
    found = {each.name: (each.at, each.reason) for each in upcoming(trip)}
    midnight = datetime(2030, 2, 10, 5, tzinfo=UTC)
    assert found == {
        "arrival": (midnight, f"its date 'arrives_on' ({NEW_YORK})"),
        "on the eve": (midnight - 6 * HOUR, f"at 18:00, 1 day before 'arrival' ({NEW_YORK})"),
        "an hour before": (midnight - HOUR, "1 hour before 'arrival'"),
    }


def test_the_time_machine_stops_at_local_times():
    declare_arrival()
    with time_machine("2030-03-08T12:00+00:00", raise_errors=True) as machine:
        on_event("arrival", offset=EVE, name="eve")(lambda event: leave(f"{machine.now:%d %H:%M}"))
        at = datetime(2030, 3, 11, 12, tzinfo=UTC)
        for tz in (NEW_YORK, TOKYO, ""):
            book_trip(tz, arrives_at=at)
        machine.advance(days=4)
    assert effects() == ["10 09:00", "10 17:00", "10 22:00"]


def test_definitions_without_a_zone_store_none(clock):
    Reservation.objects.create(status="confirmed", checkin_at=clock() + DAY)
    assert set(Event.objects.values_list("timezone", flat=True)) == {""}
    assert EventDefinition("x").timezone is None
