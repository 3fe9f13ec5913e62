"""Time zones of event definitions: what ``timezone=`` takes, and how offsets count in a zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import FR, relativedelta

from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, UnknownTimeZoneError
from django_ai.automation.values.clock import aware, in_utc, shift, variation
from django_ai.automation.values.zones import zone_or_default
from tests.apps.reservations.models import Hotel, Manager, Trip

BERLIN, NEW_YORK, SYDNEY = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("Australia/Sydney")


def definition(timezone, **options):
    return EventDefinition("arrival", date_field="arrives_at", timezone=timezone, **options)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("hotel__tz", "hotel__tz"),
        ("tz", "tz"),
        ("CET", "CET"),  # a path, so that a field of this name can be meant
        ("Europe/Berlin", BERLIN),
        ("UTC", ZoneInfo("UTC")),
        ("America/Argentina/Buenos_Aires", ZoneInfo("America/Argentina/Buenos_Aires")),
        (NEW_YORK, NEW_YORK),
        (ZoneInfo("CET"), ZoneInfo("CET")),
        (ZoneInfo.no_cache("Europe/Berlin"), BERLIN),
        (UTC, ZoneInfo("UTC")),
        (None, None),
    ],
)
def test_a_path_and_a_fixed_zone_are_told_apart(given, kept):
    assert definition(given).timezone == kept


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("Europe/Berln", "there is no time zone 'Europe/Berln'. Did you mean 'Europe/Berlin'"),
        ("Nowhere/At/All", "there is no time zone 'Nowhere/At/All'"),
        ("", "neither a path of fields"),
        ("hotel.tz", "neither a path of fields"),
        ("hotel__", "neither a path of fields"),
        ("UTC+2", "neither a path of fields"),
        (timezone(timedelta(hours=2)), "a time zone without a name"),
        (5, "must be a path of fields"),
        (ZoneInfo, "must be a path of fields"),
        (lambda: "UTC", "Declare (entity)"),
    ],
)
def test_an_invalid_time_zone_is_refused_at_import(given, problem):
    with pytest.raises(DefinitionError) as found:
        definition(given)
    assert "EventDefinition('arrival'): timezone" in str(found.value)
    assert problem in str(found.value)


def test_an_async_function_is_refused():
    async def zone(entity):
        return "UTC"

    with pytest.raises(DefinitionError, match="plain function, not async"):
        definition(zone)


def test_only_scheduled_events_have_a_time_zone():
    with pytest.raises(DefinitionError, match="timezone= is for scheduled events"):
        EventDefinition("arrived", timezone="hotel__tz")


def test_equal_definitions_have_equal_time_zones():
    assert definition(ZoneInfo("Europe/Berlin")).timezone == definition("Europe/Berlin").timezone


def trip_to(tz):
    return Trip(hotel=Hotel(tz=tz))


@pytest.mark.parametrize(
    ("tz", "name"),
    [("Asia/Tokyo", "Asia/Tokyo"), ("CET", "CET"), (ZoneInfo("Asia/Tokyo"), "Asia/Tokyo"), ("", ""), (None, "")],
)
def test_a_path_leads_to_a_name_or_to_a_zone(tz, name):
    assert definition("hotel__tz").timezone_of(trip_to(tz)) == name
    assert definition("hotel__tz").timezone_of(Trip()) == ""


def test_a_path_may_go_through_a_relation_to_the_one_row_that_refers_to_it():
    trip = trip_to("")
    trip.hotel.manager = Manager(tz="Asia/Tokyo")
    assert definition("hotel__manager__tz").timezone_of(trip) == "Asia/Tokyo"


def test_a_fixed_zone_is_that_of_every_entity():
    assert definition(NEW_YORK).timezone_of(trip_to("Asia/Tokyo")) == "America/New_York"
    assert EventDefinition("arrival", date_field="arrives_at").timezone_of(trip_to("Asia/Tokyo")) == ""


@pytest.mark.parametrize(("found", "name"), [("Asia/Tokyo", "Asia/Tokyo"), (SYDNEY, "Australia/Sydney"), (None, "")])
def test_a_function_returns_a_name_or_a_zone(found, name):
    assert definition(lambda trip: found).timezone_of(trip_to("")) == name


@pytest.mark.parametrize("tz", ["Europe/Berln", "../etc/passwd", "Europe", "x" * 64, "Europe/Berlin ", "\0", 5])
@pytest.mark.parametrize("kind", ["path", "function"])
def test_an_unknown_name_is_an_error_that_may_be_repaired(kind, tz):
    given = "hotel__tz" if kind == "path" else lambda trip: trip.hotel.tz
    trip = trip_to(tz)
    trip.pk = 7
    with pytest.raises(UnknownTimeZoneError) as found:
        definition(given).timezone_of(trip)
    assert found.value.is_retryable
    assert "app.Trip 7: the time zone of its event 'arrival'" in str(found.value)
    assert repr(tz) in str(found.value)
    assert ("'hotel__tz'" if kind == "path" else "its function") in str(found.value)
    assert ("Did you mean 'Europe/Berlin'" in str(found.value)) == (tz in ("Europe/Berln", "Europe/Berlin "))


def test_an_offset_in_a_zone_counts_on_its_wall_clock():
    """The clocks of New York change on 10 March 2030, those of Berlin on the 31st."""
    at = datetime(2030, 3, 10, 15, tzinfo=NEW_YORK).astimezone(UTC)
    for zone, expected in ((NEW_YORK, 20), (BERLIN, 19), (None, 19), (UTC, 19)):
        assert shift(at, relativedelta(days=-1), zone) == datetime(2030, 3, 9, expected, tzinfo=UTC)
    assert shift(at, timedelta(days=-1), NEW_YORK) == datetime(2030, 3, 9, 19, tzinfo=UTC)


def test_a_day_begins_at_midnight_of_the_zone():
    assert aware(date(2030, 1, 7), "day", NEW_YORK) == datetime(2030, 1, 7, 5, tzinfo=UTC)
    assert aware(date(2030, 1, 7), "day") == datetime(2030, 1, 6, 23, tzinfo=UTC)


def test_a_day_without_a_midnight_begins_after_the_clock_change():
    beirut = ZoneInfo("Asia/Beirut")  # at midnight the clocks go forward to 1:00
    day = date(2021, 3, 28)
    begin = in_utc(aware(day, "day", beirut))
    assert begin.astimezone(beirut).replace(tzinfo=None) == datetime(2021, 3, 28, 1)  # noqa: DTZ001
    assert begin == datetime(2021, 3, 27, 22, tzinfo=UTC)


def test_a_repeated_hour_equals_itself_only_in_utc():
    at = datetime(2030, 10, 27, 2, 30, tzinfo=BERLIN)
    assert at != at.astimezone(UTC)
    assert in_utc(at) == at.astimezone(UTC)


def test_the_ends_of_the_calendar_stay():
    assert in_utc(datetime.max.replace(tzinfo=NEW_YORK)) == datetime.max.replace(tzinfo=NEW_YORK)
    assert in_utc(datetime.min.replace(tzinfo=BERLIN)).tzinfo is BERLIN


def test_an_unknown_or_empty_name_is_the_zone_of_the_project(settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    for name in ("", "Europe/Berln"):
        assert str(zone_or_default(name)) == "Asia/Tokyo"


@pytest.mark.parametrize(
    "offset",
    [
        timedelta(days=-1),
        relativedelta(days=-1),
        relativedelta(days=+3, hour=9),
        relativedelta(hour=0, minute=0),
        relativedelta(months=-1),
        relativedelta(months=+11, days=-2),
        relativedelta(years=-1),
        relativedelta(leapdays=+1, years=1),
        relativedelta(weekday=FR(-1)),
        relativedelta(months=-1, weekday=FR(2), hour=8),
        relativedelta(day=1),
        relativedelta(months=-1, day=31),
        relativedelta(month=1, day=1),
        relativedelta(month=6),
    ],
    ids=str,
)
def test_the_variation_of_an_offset_bounds_its_length(offset):
    moments = [datetime(2027, 12, 1, tzinfo=UTC) + timedelta(hours=7 * number) for number in range(1900)]
    zones = [BERLIN, NEW_YORK, SYDNEY, ZoneInfo("Pacific/Kiritimati"), ZoneInfo("Pacific/Pago_Pago")]
    lengths = sorted({shift(each, offset, zone) - each for each in moments for zone in zones})
    assert lengths[-1] - lengths[0] <= variation(offset)


def test_the_zone_of_a_stored_event_survives_a_name_that_this_machine_does_not_know():
    assert Event(timezone="Mars/Olympus").zone is BERLIN
    assert Event(timezone="Asia/Tokyo").zone is ZoneInfo("Asia/Tokyo")
    assert Event().zone is BERLIN
