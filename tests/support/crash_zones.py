"""A program whose crash points are tested: dates of trips move, and so do the time zones in which their offsets count.

The acts are hours after noon on 7 January 2030 (UTC).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from dateutil.relativedelta import relativedelta
from django.db import transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    EventDefinition,
    agent,
    complete,
    event_workflow,
    handler,
    on_event,
    register_events,
    step,
)
from tests.apps.reservations.models import Hotel, Trip
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.rows import leave

ONE, TWO = 7501, 7502
PLAZA, GINZA, MOANA = 7511, 7512, 7513
EVE = relativedelta(days=-1, hour=18, minute=0)
BREAKFAST = relativedelta(hour=7)
MORNING_AFTER = relativedelta(days=1, hour=9, minute=0)


def on_the_wall(event: Any) -> str:
    """Return the trip, and the day and hour that it is there. A crash delays by minutes, so only the hour is exact."""
    return f"{event.entity_id} on {timezone.now().astimezone(event.zone):%d at %H} in {event.timezone}"


def zones() -> None:
    register_events(
        Trip,
        EventDefinition("arrival", date_field="arrives_at", timezone="hotel__tz"),
        EventDefinition("arrival_day", date_field="arrives_on", timezone="hotel__tz", rearm=True),
    )

    @on_event("arrival", offset=EVE, name="eve")
    def eve(event):
        leave(f"eve {on_the_wall(event)}")

    @event_workflow("arrival", offset=EVE, name="packing")
    class Packing:
        class Context(BaseModel):
            eve: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(eve=on_the_wall(event))

        @step(start=True)
        def pack(self):
            leave(f"packed {self.context.eve}")
            return complete()

    @on_event("arrival_day", offset=BREAKFAST, name="breakfast")
    def breakfast(event):
        leave(f"breakfast {on_the_wall(event)}")

    @agent("concierge", spawn_on="arrival_day", singleton=True)
    class Concierge:
        class Context(BaseModel):
            pass

        @handler("arrival", offset=MORNING_AFTER, match={})
        def morning(self, ctx, event):
            leave(f"morning {on_the_wall(event)}")


def booked() -> None:
    """The first trip arrives at 9:00 on the 9th in New York, the second at the same moment, 4:00 in Honolulu."""
    if Trip.objects.exists():
        return
    with transaction.atomic():
        for pk, tz in ((PLAZA, "America/New_York"), (GINZA, "Asia/Tokyo"), (MOANA, "Pacific/Honolulu")):
            Hotel.objects.create(pk=pk, tz=tz)
        arrival = datetime(2030, 1, 9, 14, tzinfo=UTC)
        Trip.objects.create(pk=ONE, hotel_id=PLAZA, arrives_at=arrival, arrives_on=date(2030, 1, 9))
        Trip.objects.create(pk=TWO, hotel_id=MOANA, arrives_at=arrival)


def trip_changes(pk: int, **fields: object) -> None:
    trip = Trip.objects.get(pk=pk)
    if any(getattr(trip, name) != value for name, value in fields.items()):
        for name, value in fields.items():
            setattr(trip, name, value)
        trip.save()


def hotel_moves(pk: int, tz: str) -> None:
    """Save the row of the hotel alone: nothing tells its trips."""
    hotel = Hotel.objects.get(pk=pk)
    if hotel.tz != tz:
        hotel.tz = tz
        hotel.save()


ZONES = Program(
    "zones",
    zones,
    [
        web(booked),
        work(),
        # The eve of the first trip is due in Tokyo after 21 hours, in New York after 35.
        web(lambda: trip_changes(ONE, hotel_id=GINZA), 1),
        work(1.1),
        # In Kolkata it is due after 24.5 hours. What wakes after 21 finds that out: the event, and the planned run.
        web(lambda: hotel_moves(GINZA, "Asia/Kolkata"), 2),
        work(21),
        # The date moves by a day: after 48.5 hours.
        web(lambda: trip_changes(ONE, arrives_at=datetime(2030, 1, 10, 14, tzinfo=UTC)), 22),
        work(24.6),
        # The eve of the second trip, due after 40 hours in Honolulu, is past in Kolkata: it is performed at once.
        web(lambda: trip_changes(TWO, hotel_id=GINZA), 36),
        work(36.1),
        work(38),  # breakfast
        # Back in Tokyo the eve of the first trip is due after 45 hours. Only the reconciliation finds that in time.
        web(lambda: hotel_moves(GINZA, "Asia/Tokyo"), 44.8),
        prune_in_batches(44.85),
        work(45.1),
        # In New York it would be due after 59 hours, but has happened. The day, which has too, comes again on the 12th.
        web(lambda: trip_changes(ONE, hotel_id=PLAZA, arrives_on=date(2030, 1, 12)), 50.1),
        work(60.1),
        work(74.1),
        # Both trips have arrived. The morning after is due after 98 hours in New York, after 103 in Honolulu.
        web(lambda: hotel_moves(PLAZA, "Pacific/Honolulu"), 75),
        web(lambda: trip_changes(ONE, nights=2), 75.1),
        work(98.1),
        work(103.1),
        work(125.1),
        prune_in_batches(126),
    ],
    [
        f"breakfast {ONE} on 09 at 07 in Asia/Kolkata",
        f"breakfast {ONE} on 12 at 07 in Pacific/Honolulu",
        f"eve {ONE} on 09 at 18 in Asia/Tokyo",
        f"eve {TWO} on 09 at 05 in Asia/Kolkata",
        f"morning {ONE} on 11 at 09 in Pacific/Honolulu",
        f"morning {TWO} on 10 at 09 in Asia/Tokyo",
        f"packed {ONE} on 09 at 18 in Asia/Tokyo",
        f"packed {TWO} on 09 at 05 in Asia/Kolkata",
    ],
)
