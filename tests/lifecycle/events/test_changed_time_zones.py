"""Scheduled events whose entity gets another time zone, or one that does not exist: saves, workers and deploys."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from django.db import transaction
from django.utils import timezone

from django_ai.automation import on_event
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Hotel, Trip
from tests.support.rows import change, effects, leave, use_up_attempts
from tests.support.trips import assert_runs_at, book_trip, declare_arrival, listen, the_event

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EVE = relativedelta(days=-1, hour=18, minute=0)
NEW_YORK = "America/New_York"
TOKYO = "Asia/Tokyo"


def on_the_eve(clock):
    """Declare arrivals with a callback and a planned run, on the eve at six."""
    definition = declare_arrival()
    listen("callback", EVE, clock)
    listen("workflow", EVE, clock)
    return definition


def timers():
    return {the_event().wake_at, WorkflowRun.objects.get().wake_at}


@pytest.mark.parametrize("save", ["whole", "update_fields"])
def test_the_timers_follow_a_trip_to_another_hotel(save, clock, work):
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    assert timers() == {datetime(2030, 2, 9, 23, tzinfo=UTC)}
    trip.hotel = Hotel.objects.create(tz=TOKYO)
    trip.save(update_fields=["hotel"] if save == "update_fields" else None)
    assert (the_event().timezone, timers()) == (TOKYO, {datetime(2030, 2, 9, 9, tzinfo=UTC)})
    assert_both_run_at(datetime(2030, 2, 9, 9, tzinfo=UTC), clock, work)


def assert_both_run_at(due, clock, work):
    clock.now = due - timedelta(microseconds=1)
    work()
    assert effects() == []
    clock.now = due
    work()
    work()
    clock.tick(3 * DAY)
    work()
    assert effects() == [due.isoformat()] * 2


def test_a_save_of_other_fields_does_not_write_a_zone_that_was_not_saved(clock):
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    trip.hotel = Hotel.objects.create(tz=TOKYO)
    trip.save(update_fields=["nights"])
    assert the_event().timezone == NEW_YORK


def test_a_save_in_a_request_with_another_time_zone_moves_no_timer(clock):
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    for zone in (TOKYO, "Pacific/Kiritimati"):
        with timezone.override(zone):
            change(trip, nights=2)
        assert timers() == {datetime(2030, 2, 9, 23, tzinfo=UTC)}


def test_a_rolled_back_save_moves_no_timer(clock):
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change(trip, hotel=Hotel.objects.create(tz=TOKYO))
        raise ZeroDivisionError
    assert (the_event().timezone, timers()) == (NEW_YORK, {datetime(2030, 2, 9, 23, tzinfo=UTC)})


@pytest.mark.parametrize(
    ("tz", "due"), [("Pacific/Pago_Pago", (2030, 2, 10, 5)), (TOKYO, (2030, 2, 9, 9))], ids=["later", "earlier"]
)
def test_a_hotel_that_moves_is_noticed_at_the_next_save_of_the_trip(tz, due, clock):
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    change(trip.hotel, tz=tz)
    assert the_event().timezone == NEW_YORK
    change(trip, nights=2)
    assert (the_event().timezone, timers()) == (tz, {datetime(*due, tzinfo=UTC)})


def test_a_timer_is_not_early_though_nothing_has_moved_it(clock, work):
    """The worker that wakes at the old time reads the zone again."""
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    change(trip.hotel, tz="Pacific/Pago_Pago")
    clock.now = datetime(2030, 2, 9, 23, tzinfo=UTC)
    work()
    assert (effects(), the_event().timezone) == ([], "Pacific/Pago_Pago")
    assert_both_run_at(datetime(2030, 2, 10, 5, tzinfo=UTC), clock, work)


def test_an_offset_that_is_past_in_the_new_zone_runs_at_once(clock, work):
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    clock.now = datetime(2030, 2, 9, 12, tzinfo=UTC)
    work()
    change(trip, hotel=Hotel.objects.create(tz=TOKYO))
    work()
    assert effects() == [clock().isoformat()] * 2


def test_an_offset_after_the_date_that_is_past_in_the_new_zone_runs_at_once(clock, work):
    """It was not missed: it is due now. So it runs although its grace period is over."""
    declare_arrival(grace=timedelta(0))
    listen("callback", relativedelta(days=1, hour=9), clock)
    trip = book_trip(NEW_YORK, arrives_at=clock() + HOUR)
    clock.tick(HOUR)
    work()
    clock.now = datetime(2030, 1, 8, 6, tzinfo=UTC)
    change(trip, hotel=Hotel.objects.create(tz=TOKYO))
    work()
    assert effects() == [clock().isoformat()]


def test_an_offset_that_has_fired_does_not_fire_again_in_the_new_zone(clock, work):
    on_the_eve(clock)
    trip = book_trip(TOKYO, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    clock.now = datetime(2030, 2, 9, 9, tzinfo=UTC)
    work()
    change(trip, hotel=Hotel.objects.create(tz=NEW_YORK))
    for _ in range(20):
        clock.tick(2 * HOUR)
        work()
    assert effects() == [datetime(2030, 2, 9, 9, tzinfo=UTC).isoformat()] * 2


def test_offsets_after_the_date_follow_too(clock, work):
    declare_arrival()
    listen("callback", relativedelta(days=1, hour=9), clock)
    trip = book_trip(TOKYO, arrives_at=clock() + HOUR)
    clock.tick(HOUR)
    work()
    change(trip, hotel=Hotel.objects.create(tz=NEW_YORK))
    assert_runs_at(datetime(2030, 1, 8, 14, tzinfo=UTC), clock, work)


@pytest.mark.parametrize("tz", [NEW_YORK, TOKYO])
def test_a_day_that_has_occurred_does_not_occur_again_in_another_zone(tz, clock, work):
    declare_arrival(date_field="arrives_on", rearm=True)
    listen("callback", None, clock)
    trip = book_trip("Europe/Berlin", arrives_on=date(2030, 1, 9))
    clock.now = datetime(2030, 1, 8, 23, tzinfo=UTC)
    work()
    change(trip, hotel=Hotel.objects.create(tz=tz))
    for _ in range(20):
        clock.tick(2 * HOUR)
        work()
    assert effects() == [datetime(2030, 1, 8, 23, tzinfo=UTC).isoformat()]
    change(trip, arrives_on=date(2030, 1, 12))
    clock.now = datetime(2030, 1, 13, tzinfo=UTC)
    work()
    assert len(effects()) == 2


def test_a_moment_that_moves_with_the_zone_occurs_again(clock, work):
    """Ten o'clock in New York becomes ten o'clock of the same day in Honolulu."""
    declare_arrival(rearm=True)
    listen("callback", None, clock)
    moments = [datetime(2030, 1, 9, 10, tzinfo=ZoneInfo(zone)) for zone in (NEW_YORK, "Pacific/Honolulu")]
    trip = book_trip(NEW_YORK, arrives_at=moments[0])
    clock.now = moments[0].astimezone(UTC)
    work()
    change(trip, hotel=Hotel.objects.create(tz="Pacific/Honolulu"), arrives_at=moments[1])
    clock.now = moments[1].astimezone(UTC)
    work()
    assert effects() == [moment.astimezone(UTC).isoformat() for moment in moments]


def test_a_worker_that_finds_an_occurred_day_in_another_zone_lets_it_be(clock, work):
    """Nothing but the row of the hotel is written. The offset after the day counts from midnight in the new zone."""
    declare_arrival(date_field="arrives_on", rearm=True)
    listen("callback", 9 * HOUR, clock)
    trip = book_trip("Europe/Berlin", arrives_on=date(2030, 1, 9))
    clock.now = datetime(2030, 1, 9, 1, tzinfo=UTC)
    work()
    change(trip.hotel, tz=NEW_YORK)
    assert_runs_at(datetime(2030, 1, 9, 14, tzinfo=UTC), clock, work)
    assert Event.objects.count() == 1


def test_an_expired_day_may_occur_while_it_is_ahead_in_the_new_zone(clock, work):
    declare_arrival(date_field="arrives_on", condition=lambda trip: trip.valid, grace=timedelta(0))
    listen("callback", None, clock)
    trip = book_trip("Europe/Berlin", arrives_on=date(2030, 1, 9), valid=False)
    clock.now = datetime(2030, 1, 8, 23, 30, tzinfo=UTC)
    work()
    assert the_event().status == "expired"
    change(trip, hotel=Hotel.objects.create(tz=TOKYO))
    assert the_event().status == "expired"
    change(trip, hotel=Hotel.objects.create(tz=NEW_YORK), valid=True)
    assert_runs_at(datetime(2030, 1, 9, 5, tzinfo=UTC), clock, work)


def existing_trip(tz, clock):
    """Return a trip that is older than the definition of its event, on 9 January."""
    trip = book_trip(tz, arrives_on=date(2030, 1, 9))
    assert Event.objects.count() == 0
    declare_arrival(date_field="arrives_on")
    listen("callback", None, clock)
    return trip


@pytest.mark.parametrize(
    ("tz", "status"), [("Pacific/Kiritimati", "expired"), ("Europe/Berlin", "pending"), (NEW_YORK, "pending")]
)
def test_a_day_that_had_begun_there_before_the_first_save_does_not_occur(tz, status, clock, work):
    clock.now = datetime(2030, 1, 8, 12, tzinfo=UTC)  # two o'clock on the 9th in Kiritimati
    trip = existing_trip(tz, clock)
    change(trip, nights=2)
    work()
    assert (the_event().status, effects()) == (status, [])


def test_a_day_that_held_before_does_not_occur_in_another_zone_in_which_it_has_begun(clock, work):
    clock.now = datetime(2030, 1, 9, 12, tzinfo=UTC)
    trip = existing_trip(TOKYO, clock)
    change(trip, nights=2)
    change(trip, hotel=Hotel.objects.create(tz=NEW_YORK))
    work()
    assert (the_event().status, the_event().timezone, effects()) == ("expired", NEW_YORK, [])


def test_recheck_evaluates_the_condition_at_the_local_time(clock, work):
    declare_arrival(condition=lambda trip: trip.valid)
    moments = []
    for name, tz in (("kept", NEW_YORK), ("dropped", NEW_YORK), ("elsewhere", TOKYO)):
        moments.append((name, book_trip(tz, arrives_at=clock() + HOUR)))
    on_event("arrival", offset=relativedelta(days=1, hour=9), recheck=True, name="timed")(
        lambda event: leave(f"{clock().isoformat()} {event.entity.tz}")
    )
    for _, trip in moments:
        trip.save()
    clock.tick(HOUR)
    work()
    change(moments[1][1], valid=False)
    for hour in range(13, 48):
        clock.now = datetime(2030, 1, 7, tzinfo=UTC) + hour * HOUR
        work()
    assert effects() == ["2030-01-08T00:00:00+00:00 Asia/Tokyo", "2030-01-08T14:00:00+00:00 America/New_York"]


@pytest.mark.parametrize("change_of_code", ["added", "removed", "another"])
def test_a_deploy_that_changes_the_zone_is_noticed_at_the_next_save(change_of_code, clock, monkeypatch):
    before, after = {"added": (None, TOKYO), "removed": (TOKYO, None), "another": (NEW_YORK, TOKYO)}[change_of_code]
    definition = declare_arrival(before)
    on_event("arrival", offset=EVE)(lambda event: None)
    trip = book_trip("", arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    monkeypatch.setattr(definition, "timezone", None if after is None else ZoneInfo(after))
    trip.save()
    assert (the_event().timezone, the_event().wake_at.hour) == (after or "", 17 if after is None else 9)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_unknown_zone_never_fails_the_save(clock, work, caplog):
    declare_arrival()
    listen("callback", EVE, clock)
    trip = book_trip("Amerika/New_York", arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    event = the_event()
    assert (event.status, event.armed, event.attempt) == ("pending", False, 1)
    use_up_attempts(event, work)
    event.refresh_from_db()
    assert event.status == "parked"
    for part in (f"app.Trip {trip.pk}", "'Amerika/New_York'", "'hotel__tz'", "Did you mean 'America/New_York'"):
        assert part in event.error
    assert effects() == []
    assert "Amerika/New_York" in event.waits_for(clock())


def test_a_zone_that_is_corrected_settles_it(clock, work):
    declare_arrival()
    listen("callback", EVE, clock)
    trip = book_trip("Amerika/New_York", arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    change(trip.hotel, tz=NEW_YORK)
    change(trip, nights=2)
    event = the_event()
    assert (event.status, event.armed, event.attempt, event.error) == ("pending", True, 0, "")
    assert_runs_at(datetime(2030, 2, 9, 23, tzinfo=UTC), clock, work)


def test_a_worker_notices_that_the_zone_was_corrected(clock, work):
    declare_arrival(date_field="arrives_on")
    listen("callback", None, clock)
    trip = book_trip("Amerika/New_York", arrives_on=date(2030, 2, 10))
    change(trip.hotel, tz=NEW_YORK)
    clock.tick(2 * timedelta(seconds=1))
    work()
    assert (the_event().armed, the_event().timezone) == (True, NEW_YORK)
    assert_runs_at(datetime(2030, 2, 10, 5, tzinfo=UTC), clock, work)


def test_a_parked_event_is_resumed_with_the_corrected_zone(clock, work):
    declare_arrival()
    listen("callback", EVE, clock)
    trip = book_trip("Amerika/New_York", arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    event = the_event()
    use_up_attempts(event, work)
    change(trip.hotel, tz=NEW_YORK)
    event.resume()
    work()
    assert (the_event().armed, the_event().timezone) == (True, NEW_YORK)
    assert_runs_at(datetime(2030, 2, 9, 23, tzinfo=UTC), clock, work)


def test_a_zone_that_becomes_unknown_parks_what_is_due(clock, work):
    on_the_eve(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    change(trip.hotel, tz="Mars/Olympus")
    clock.now = datetime(2030, 2, 9, 23, tzinfo=UTC)
    work()
    for _ in range(10):
        clock.tick(timedelta(seconds=10))
        work()
    event, run = the_event(), WorkflowRun.objects.get()
    assert (event.status, run.status, effects()) == ("parked", "parked", [])
    assert "Mars/Olympus" in event.error
    assert "Mars/Olympus" in run.error
    change(trip.hotel, tz=NEW_YORK)
    event.resume()
    run.resume()
    work()
    assert effects() == [clock().isoformat()] * 2


@pytest.mark.parametrize("given", [lambda trip: trip.hotel.tzz, "hotel__tzz"], ids=["function", "path"])
def test_what_raises_is_treated_as_a_condition_that_raises(given, clock, work):
    declare_arrival(given)
    book_trip(NEW_YORK, arrives_at=clock() + DAY)
    event = the_event()
    assert event.attempt == 1
    use_up_attempts(event, work)
    event.refresh_from_db()
    assert event.status == "parked"
    assert "tzz" in event.error


def test_a_query_that_fails_in_the_function_does_not_break_the_transaction(clock):
    declare_arrival(lambda trip: Hotel.objects.extra(where=["no_such_column = 1"]).first())
    with transaction.atomic():
        book_trip(NEW_YORK, arrives_at=clock() + DAY)
        assert Trip.objects.count() == 1
    assert the_event().attempt == 1


def test_a_missing_hotel_means_the_zone_of_the_project(clock):
    declare_arrival()
    trip = book_trip(NEW_YORK, arrives_at=clock() + DAY)
    trip.hotel = None
    trip.save()
    assert (the_event().timezone, the_event().status) == ("", "pending")
