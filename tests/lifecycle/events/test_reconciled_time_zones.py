"""Reconciliation of time zones: the row of a hotel changes, and no trip is saved."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_ai.automation import on_event
from django_ai.automation.events import zone_queries
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording import reconcile
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.queues.periodic_tasks import TimeSlice
from tests.apps.reservations.models import Hotel, Trip
from tests.support.rows import change, effects, leave
from tests.support.trips import book_trip, declare_arrival, the_event

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EVE = relativedelta(days=-1, hour=18, minute=0)
NEW_YORK, TOKYO, HAWAII = "America/New_York", "Asia/Tokyo", "Pacific/Honolulu"

WAYS = {"path": "hotel__tz", "function": lambda trip: trip.tz}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.mark.parametrize(
    ("tz", "due"),
    [(TOKYO, (2030, 1, 9, 9)), (HAWAII, (2030, 1, 9, 4)), ("", (2030, 1, 8, 17)), (None, (2030, 1, 8, 17))],
    ids=["earlier", "later", "blank", "null"],
)
def test_a_hotel_that_moves_moves_the_timers_of_its_trips(way, tz, due, clock, work):
    declare_arrival(way)
    on_event("arrival", offset=EVE)(lambda event: leave(clock().isoformat()))
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 1, 9, 20, tzinfo=UTC))
    other = book_trip(NEW_YORK, arrives_at=datetime(2030, 1, 9, 20, tzinfo=UTC))
    change(trip.hotel, tz=tz)
    assert reconcile_dates(clock()) == 1
    assert reconcile_dates(clock()) == 0
    assert Event.objects.of(trip).get().wake_at == datetime(*due, tzinfo=UTC)
    assert Event.objects.of(other).get().timezone == NEW_YORK


@pytest.mark.parametrize("tz", [TOKYO, HAWAII, "Pacific/Kiritimati", "Pacific/Pago_Pago", "", None])
def test_a_hotel_that_moves_moves_the_days_of_its_trips(way, tz, clock):
    declare_arrival(way, date_field="arrives_on")
    trip, others = book_trip(NEW_YORK, arrives_on=date(2030, 1, 8)), []
    for other in (NEW_YORK, TOKYO, "Asia/Kolkata", "", None, "Europe/Berlin"):
        others.append(book_trip(other, arrives_on=date(2030, 1, 8)))
    before = list(Event.objects.exclude(pk=Event.objects.of(trip).get().pk).order_by("pk").values())
    change(trip.hotel, tz=tz)
    assert reconcile_dates(clock()) == 1
    assert reconcile_dates(clock()) == 0
    zone = ZoneInfo(tz or "Europe/Berlin")
    assert Event.objects.of(trip).get().at == datetime(2030, 1, 8, tzinfo=zone)
    kept = list(Event.objects.exclude(pk=Event.objects.of(trip).get().pk).order_by("pk").values())
    assert kept == before


def read(clock):
    """Return how many statements of a reconciliation read whole rows of trips."""
    with CaptureQueriesContext(connection) as queries:
        reconcile_dates(clock())
    name = connection.ops.quote_name("nights")
    return sum(query["sql"].startswith("SELECT") and name in query["sql"] for query in queries)


@pytest.mark.parametrize("date_field", ["arrives_at", "arrives_on"])
@pytest.mark.parametrize(
    "given", ["hotel__tz", "Asia/Tokyo", None, "hotel__manager__tz"], ids=["path", "fixed", "none", "reverse"]
)
def test_trips_whose_zone_is_as_recorded_are_not_read(date_field, given, clock):
    declare_arrival(given, date_field=date_field)
    on_event("arrival", offset=EVE)(lambda event: None)
    for tz in (NEW_YORK, TOKYO, "", None):
        book_trip(tz, arrives_at=datetime(2030, 1, 8, 20, tzinfo=UTC), arrives_on=date(2030, 1, 8))
    Trip.objects.create(arrives_at=datetime(2030, 1, 8, 20, tzinfo=UTC), arrives_on=date(2030, 1, 8))
    assert read(clock) == 0


@pytest.mark.parametrize("date_field", ["arrives_at", "arrives_on"])
def test_a_function_is_evaluated_for_each_trip_that_is_near(date_field, clock):
    declare_arrival(WAYS["function"], date_field=date_field)
    on_event("arrival", offset=EVE)(lambda event: None)
    book_trip(NEW_YORK, arrives_at=datetime(2030, 1, 8, 20, tzinfo=UTC), arrives_on=date(2030, 1, 8))
    book_trip(NEW_YORK, arrives_at=datetime(2031, 1, 8, 20, tzinfo=UTC), arrives_on=date(2031, 1, 8))
    assert read(clock) == 1
    Event.objects.update(status="processed", wake_at=None)
    assert read(clock) == (0 if date_field == "arrives_at" else 1)


@pytest.mark.parametrize("before", [None, "Asia/Tokyo", "hotel__tz"])
@pytest.mark.parametrize("after", [None, "America/New_York", "hotel__tz"])
def test_a_deploy_that_changes_the_zone(before, after, clock, monkeypatch):
    definition = declare_arrival(before)
    book_trip("Asia/Kolkata", arrives_at=clock() + timedelta(minutes=10))
    if before == after:
        assert reconcile_dates(clock()) == 0
        return
    monkeypatch.setattr(definition, "timezone", ZoneInfo(after) if after and "/" in after else after)
    assert reconcile_dates(clock()) == 1
    assert the_event().timezone == {None: "", "hotel__tz": "Asia/Kolkata"}.get(after, after)
    assert reconcile_dates(clock()) == 0


@pytest.mark.slow
def test_trips_that_were_inserted_in_bulk_have_timers_in_their_zones(clock, work):
    declare_arrival(date_field="arrives_on")
    on_event("arrival", offset=EVE)(lambda event: leave(f"{event.timezone} {clock():%d %H}"))
    hotels = [Hotel.objects.create(tz=tz) for tz in (TOKYO, NEW_YORK, HAWAII, "")]
    Trip.objects.bulk_create([Trip(hotel=hotel, arrives_on=date(2030, 1, 9)) for hotel in hotels])
    for _ in range(60):
        reconcile_dates(clock())
        work()
        clock.tick(HOUR)
    assert effects() == [f"{TOKYO} 08 09", " 08 17", f"{NEW_YORK} 08 23", f"{HAWAII} 09 04"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offset", "day", "due"),
    [
        (relativedelta(days=-1, hour=9, minute=0), (2030, 1, 9, 22, 59), (2030, 1, 8, 8)),
        (relativedelta(months=-1), (2030, 5, 1, 10), (2030, 4, 1, 10)),
        (relativedelta(months=-1, day=1), (2030, 5, 31, 10), (2030, 4, 1, 10)),
        (relativedelta(days=+1, hour=23, minute=0), (2030, 1, 7, 12), (2030, 1, 8, 22)),
    ],
    ids=str,
)
def test_an_offset_that_sets_the_hour_or_counts_months_is_found_in_time(offset, day, due, clock, work):
    """Its length depends on the date, so the dates whose offset is near are not all equally far away."""
    declare_arrival(None)
    on_event("arrival", offset=offset)(lambda event: leave(clock().isoformat()))
    clock.now = min(datetime(*due, tzinfo=UTC), datetime(*day, tzinfo=UTC)) - 3 * DAY
    trip = book_trip("", arrives_at=datetime(2035, 1, 1, tzinfo=UTC))
    Trip.objects.filter(pk=trip.pk).update(arrives_at=datetime(*day, tzinfo=UTC))
    while clock() < datetime(*due, tzinfo=UTC) + HOUR:
        reconcile_dates(clock())
        work()
        clock.tick(HOUR)
    assert effects() == [datetime(*due, tzinfo=UTC).isoformat()]


def test_an_unknown_zone_is_tried_again_and_parked_once(clock, work):
    declare_arrival(date_field="arrives_on")
    trips = [book_trip(tz, arrives_on=date(2030, 1, 8)) for tz in (NEW_YORK, TOKYO)]
    change(trips[0].hotel, tz="Mars/Olympus")
    assert reconcile_dates(clock()) == 1
    for _ in range(10):
        clock.tick(timedelta(seconds=10))
        work()
    event = Event.objects.of(trips[0]).get()
    assert event.status == "parked"
    assert "Mars/Olympus" in event.error
    assert reconcile_dates(clock()) == 0
    assert Event.objects.of(trips[1]).get().status == "pending"


@pytest.mark.slow
def test_days_in_many_zones_are_compared_in_time_slices(clock, monkeypatch):
    monkeypatch.setattr(reconcile, "DATES_PER_QUERY", 4)
    monkeypatch.setattr(reconcile, "ENTITIES_PER_TRANSACTION", 2)
    monkeypatch.setattr(reconcile, "KEYS_PER_QUERY", 3)
    zones = [f"Etc/GMT{number:+d}" for number in range(-12, 13)]
    declare_arrival(date_field="arrives_on")
    trips = [book_trip("", arrives_on=date(2030, 1, 7) + (number % 2) * DAY) for number, _ in enumerate(zones)]
    for trip, tz in zip(trips, zones, strict=True):
        Hotel.objects.filter(pk=trip.hotel_id).update(tz=tz)
    done, position = [], None
    while not done or position is not None:
        found = reconcile.reconcile_slice(TimeSlice(clock(), position, until=0.0))
        done.append(found.done)
        position = found.position
    assert (sum(done), max(done)) == (25, 2)
    for trip, tz in zip(trips, zones, strict=True):
        event = Event.objects.of(trip).get()
        assert (event.timezone, event.at) == (tz, datetime.combine(trip.arrives_on, datetime.min.time(), event.zone))
    assert reconcile_dates(clock()) == 0


# -- what a query can follow -------------------------------------------------------------------------------------------


UNFOLLOWED = {
    "a relation that may lead to no row": (Trip._meta.get_field("hotel"), "db_constraint", False),
    "a text that only Python reads": (Hotel._meta.get_field("tz"), "get_internal_type", lambda: "Encrypted"),
    "another database": (
        zone_queries.router,
        "db_for_write",
        lambda model, **hints: "other" if model is Hotel else "default",
    ),
}


@pytest.mark.parametrize("case", UNFOLLOWED)
def test_a_path_that_a_query_cannot_follow_is_evaluated_in_python(case, clock, monkeypatch):
    definition = declare_arrival()
    trip = book_trip(NEW_YORK, arrives_at=clock() + timedelta(minutes=10))
    assert read(clock) == 0
    change(trip.hotel, tz=TOKYO)
    monkeypatch.setattr(*UNFOLLOWED[case])
    assert zone_queries.stored_zone(Trip, definition) is None
    if case != "another database":  # the tests have one
        assert read(clock) > 0
        assert the_event().timezone == TOKYO
