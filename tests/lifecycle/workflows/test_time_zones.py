"""Runs of workflows on events in the time zone of their entity: planned, withdrawn, planned again, and waiting."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from dateutil.relativedelta import relativedelta
from pydantic import BaseModel

from django_ai.automation.events.models import Event
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.workflows.core import complete, engine, event_workflow, step, wait_for_event, workflow
from tests.support.rows import change, effects, leave, the_run
from tests.support.trips import book_trip, declare_arrival

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EVE = relativedelta(days=-1, hour=18, minute=0)
NEW_YORK, TOKYO = "America/New_York", "Asia/Tokyo"


def planned(clock, offset=EVE, **options):
    @event_workflow("arrival", offset=offset, name="planned", **options)
    class Planned:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            leave(clock().isoformat())
            return complete()


def test_a_run_that_was_withdrawn_is_planned_again_in_the_new_zone(clock, work):
    declare_arrival(condition=lambda trip: trip.valid)
    planned(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    assert the_run().wake_at == datetime(2030, 2, 9, 23, tzinfo=UTC)
    change(trip, valid=False)
    assert the_run().status == "withdrawn"
    change(trip.hotel, tz=TOKYO)
    change(trip, valid=True)
    run = the_run()
    assert (run.status, run.wake_at) == ("waiting", datetime(2030, 2, 9, 9, tzinfo=UTC))


def test_an_unknown_zone_withdraws_the_run_and_a_correction_plans_it_again(clock, work):
    declare_arrival()
    planned(clock)
    trip = book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    change(trip.hotel, tz="Mars/Olympus")
    change(trip, nights=2)
    assert the_run().status == "withdrawn"
    change(trip.hotel, tz=TOKYO)
    clock.tick(timedelta(seconds=1))
    work()
    assert (the_run().status, the_run().wake_at) == ("waiting", datetime(2030, 2, 9, 9, tzinfo=UTC))
    clock.now = datetime(2030, 2, 9, 9, tzinfo=UTC)
    work()
    assert effects() == [clock().isoformat()]


def test_a_worker_that_finds_another_zone_defers_the_run(clock, work):
    """The event has no timer at this time: the run is its own timer, and reads the zone from the entity."""
    declare_arrival()
    planned(clock)
    trip = book_trip(TOKYO, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    change(trip.hotel, tz=NEW_YORK)
    clock.now = datetime(2030, 2, 9, 9, tzinfo=UTC)
    work()
    assert (effects(), the_run().wake_at) == ([], datetime(2030, 2, 9, 23, tzinfo=UTC))
    clock.now = datetime(2030, 2, 9, 23, tzinfo=UTC)
    work()
    assert effects() == [clock().isoformat()]


def test_the_reconciliation_moves_planned_runs(clock):
    declare_arrival(date_field="arrives_on")
    planned(clock)
    trip = book_trip(NEW_YORK, arrives_on=date(2030, 1, 9))
    change(trip.hotel, tz=TOKYO)
    reconcile_dates(clock())
    assert the_run().wake_at == datetime(2030, 1, 8, 9, tzinfo=UTC)


def test_recheck_of_a_run_is_made_at_the_local_time(clock, work):
    declare_arrival(condition=lambda trip: trip.valid)
    planned(clock, relativedelta(days=1, hour=9), recheck=True)
    trips = [book_trip(tz, arrives_at=clock() + HOUR) for tz in (NEW_YORK, TOKYO)]
    clock.tick(HOUR)
    work()
    for hour, expected in ((0, 1), (13, 1)):
        clock.now = datetime(2030, 1, 8, hour, tzinfo=UTC)
        work()
        assert len(effects()) == expected
    change(trips[0], valid=False)
    clock.now = datetime(2030, 1, 8, 14, tzinfo=UTC)
    work()
    assert effects() == ["2030-01-08T00:00:00+00:00"]
    assert the_run(entity_id=str(trips[0].pk)).status == "cancelled"


def test_a_deadline_counts_from_the_local_time(clock, work):
    declare_arrival()
    planned(clock, deadline=DAY)
    book_trip(NEW_YORK, arrives_at=datetime(2030, 2, 10, 14, tzinfo=UTC))
    clock.now = datetime(2030, 2, 10, 1, tzinfo=UTC)
    work()
    assert the_run().deadline == datetime(2030, 2, 10, 23, tzinfo=UTC)


@pytest.mark.parametrize(("tz", "hour"), [(NEW_YORK, 5), (TOKYO, -9), ("", -1)])
def test_a_run_that_waits_for_a_day_wakes_at_its_midnight(tz, hour, clock, work):
    declare_arrival(date_field="arrives_on")

    @workflow("waiting")
    class Waiting:
        class Context(BaseModel):
            trip_id: int

        @step(start=True)
        def first(self):
            return wait_for_event("arrival", match={"id": "{{ ctx.trip_id }}"}, then=self.second)

        @step()
        def second(self):
            leave(clock().isoformat())
            return complete()

    trip = book_trip(tz, arrives_on=date(2030, 1, 10))
    engine.start("waiting", trip_id=trip.pk)
    work()
    due = datetime(2030, 1, 10, tzinfo=UTC) + hour * HOUR
    clock.now = due - timedelta(microseconds=1)
    work()
    assert effects() == []
    clock.now = due
    work()
    assert effects() == [due.isoformat()]
    assert Event.objects.get().occurred_at == due
