"""Who comes to the hotel today, and what happens at the desk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils import timezone

from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import WorkflowRun
from hotel.desk import close_day, open_day
from hotel.models import Document, Guest, Reservation
from hotel.pace import hours

LONG_AGO = -50_000
BOOKINGS: tuple[tuple[str, float, float | None, bool], ...] = (
    # name, check-in, check-out (hours from now), paid
    ("Ada", 6, None, False),
    ("Ben", 6, None, False),
    ("Cleo", 7, None, False),
    ("Dan", 8, None, False),
    ("Eve", LONG_AGO, 4, True),
    ("Finn", LONG_AGO, 4.5, False),
    ("Gil", 6.5, None, False),
)


@dataclass
class Move:
    """A date before and after, and the times of what hangs on it."""

    dates: tuple[datetime, datetime]
    timers: tuple[tuple[datetime, datetime], ...]


@dataclass
class Day:
    """The people of the story, when it began, and what was seen on the way."""

    began: datetime
    guests: dict[str, Reservation] = field(default_factory=dict)
    audit: Any = None
    move: Move | None = None
    planned_for_cleo: int = 0
    left_for_cleo: int | None = None

    def at(self, hour: float) -> datetime:
        return self.began + hours(hour)

    def hour_of(self, moment: datetime) -> float:
        return (moment - self.began) / hours(1)

    def runs(self, name: str, workflow: str = "") -> Any:
        """The runs for a guest, of one workflow or of all."""
        found = WorkflowRun.objects.filter(entity_id=str(self.guests[name].pk)).order_by("pk")
        return found.filter(name=workflow) if workflow else found


@dataclass(frozen=True)
class Act:
    """Something that a person at the desk does at an hour."""

    hour: float
    what: str
    do: Callable[[Day], object]


def open_the_book() -> Day:
    """Take the reservations, and start the night audit. Gil has sent his papers days before."""
    day = Day(began=timezone.now())
    for room, (name, checkin, checkout, paid) in enumerate(BOOKINGS, 101):
        day.guests[name] = Reservation.objects.create(
            guest=Guest.objects.create(name=name),
            room=str(room),
            status=Reservation.Status.CONFIRMED,
            checkin_at=day.at(checkin),
            checkout_at=None if checkout is None else day.at(checkout),
            paid=paid,
        )
    Document.objects.create(reservation=day.guests["Gil"], kind="visa")
    day.audit = open_day("Monday")
    return day


def acts() -> Iterator[Act]:
    yield Act(0.75, "Ben's check-in is put off by two hours", put_off_ben)
    yield Act(1.0, "Cleo cancels", cancel_cleo)
    yield Act(1.25, "Dan's reservation is deleted", lambda day: day.guests["Dan"].delete())
    yield Act(2.5, "the day is closed: a signal for the night audit", lambda day: close_day(420, weather="fine"))
    yield Act(3.5, "Ada uploads her passport (Ben never does)", upload_for_ada)


def put_off_ben(day: Day) -> None:
    ben = day.guests["Ben"]
    before, old = ben.checkin_at, timers_of(day, "Ben")
    ben.checkin_at = before + hours(2)
    ben.save()
    day.move = Move((before, ben.checkin_at), tuple(zip(old, timers_of(day, "Ben"), strict=True)))


def timers_of(day: Day, name: str) -> list[datetime]:
    """When the check-in, and each run planned for it, is due."""
    event = Event.objects.of(day.guests[name]).get(event_name="checkin_due")
    return [event.at, *day.runs(name).values_list("wake_at", flat=True)]


def cancel_cleo(day: Day) -> None:
    cleo = day.guests["Cleo"]
    day.planned_for_cleo = day.runs("Cleo").filter(status="waiting").count()
    cleo.status = Reservation.Status.CANCELLED
    cleo.save()
    day.left_for_cleo = day.runs("Cleo").count()


def upload_for_ada(day: Day) -> None:
    Document.objects.create(reservation=day.guests["Ada"], kind="passport")
