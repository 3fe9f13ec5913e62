"""The story of the demo: the guests, and the actions at the front desk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils import timezone

from django_ai.automation import claims
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import WorkflowRun
from hotel.desk import call_off_the_audit, close_day, waive_documents
from hotel.models import Complaint, Document, Guest, GuestMessage, Reservation
from hotel.pace import hours

from .terminal import report_a_payment

LONG_AGO_HOURS = -50_000
BOOKINGS: tuple[tuple[str, float, float | None, bool], ...] = (
    # name, check-in, check-out (hours from now), paid
    ("Ada", 6, None, False),
    ("Ben", 6, None, False),
    ("Cleo", 7, None, False),
    ("Dan", 8, None, False),
    ("Eve", LONG_AGO_HOURS, 4, True),
    ("Finn", LONG_AGO_HOURS, 4.5, False),
    ("Gil", 6.5, None, False),
    ("Hana", 4, 6.75, True),
)
VIP = "Hana"
ADAS_LETTERS = ("May I come early?", "At noon?", "With a dog?")


@dataclass
class Move:
    """A date before and after it was moved, and the times of its timers."""

    dates: tuple[datetime, datetime]
    timers: tuple[tuple[datetime, datetime], ...]


@dataclass
class Day:
    """The state of the story: its start, its guests, and what was observed during the actions."""

    started: datetime
    guests: dict[str, Reservation] = field(default_factory=dict)
    move: Move | None = None
    planned_for_cleo: int = 0
    left_for_cleo: int | None = None
    letters: dict[str, GuestMessage] = field(default_factory=dict)
    complaints: dict[str, Complaint] = field(default_factory=dict)
    claimed_by: Any = None
    terminal_answers: list[int] = field(default_factory=list)

    @property
    def audit(self) -> WorkflowRun | None:
        return WorkflowRun.objects.filter(name="hotel.night_audit").order_by("pk").first()

    def at(self, hour: float) -> datetime:
        return self.started + hours(hour)

    def hour_of(self, moment: datetime) -> float:
        return (moment - self.started) / hours(1)

    def runs(self, name: str, workflow: str = "") -> Any:
        """Return the runs for a guest, of one workflow or of all."""
        found = WorkflowRun.objects.filter(entity_id=str(self.guests[name].pk)).order_by("pk")
        return found.filter(name=workflow) if workflow else found

    def journey(self, name: str) -> AgentRun | None:
        """Return the agent of a guest's stay."""
        return AgentRun.objects.filter(name="hotel.journey", entity_id=str(self.guests[name].pk)).first()


@dataclass(frozen=True)
class Action:
    """An action at the front desk, at an hour of the day."""

    hour: float
    what: str
    do: Callable[[Day], object]


def create_bookings() -> Day:
    """Create the reservations. Gil has already handed in a document."""
    day = Day(started=timezone.now())
    for room, (name, checkin, checkout, paid) in enumerate(BOOKINGS, 101):
        day.guests[name] = Reservation.objects.create(
            guest=Guest.objects.create(name=name, vip=name == VIP),
            room=str(room),
            status=Reservation.Status.CONFIRMED,
            checkin_at=day.at(checkin),
            checkout_at=None if checkout is None else day.at(checkout),
            paid=paid,
        )
    Document.objects.create(reservation=day.guests["Gil"], kind="visa")
    return day


def actions() -> Iterator[Action]:
    """Yield the actions in the order of their hours.

    An action that depends on an earlier one is at least a second later: a claim does not affect messages that were
    written before it was held.
    """
    yield Action(0.75, "Ben's check-in is postponed by two hours", postpone_ben)
    yield Action(1.0, "Cleo cancels", cancel_cleo)
    yield Action(1.25, "Dan's reservation is deleted", delete_dan)
    yield Action(1.5, "the desk knows Hana and waives her documents", lambda day: waive_documents(day.guests["Hana"]))
    yield Action(1.75, "Ada writes three letters, long before she arrives", write_three_letters)
    yield Action(2.5, "the day is closed: a signal for the night audit", lambda day: close_day(420, weather="fine"))
    yield Action(2.6, "one audit is enough: its schedule is paused", lambda day: call_off_the_audit())
    yield Action(3.0, "the card terminal reports a payment of Eve twice, and somebody forges one", pay_by_card)
    yield Action(3.5, "Ada uploads her passport (Ben never does)", upload_for_ada)
    yield Action(4.35, "Hana writes, in her room", lambda day: write(day, "Hana", "Is there a sauna?"))
    yield Action(4.7, "Hana complains: the radiator", lambda day: complain(day, "Hana", "The radiator is cold"))
    yield Action(4.8, "Hana complains: the tap", lambda day: complain(day, "Hana", "The tap drips"))
    yield Action(4.95, "the radiator is repaired", lambda day: repair(day, "The radiator is cold"))
    yield Action(5.1, "Hana writes while the tap still drips, and so does Finn, whose tap does not", write_during_claim)
    yield Action(5.5, "the tap is repaired", lambda day: repair(day, "The tap drips"))
    yield Action(5.95, "Hana writes once more", lambda day: write(day, "Hana", "Is there some cake left?"))


def postpone_ben(day: Day) -> None:
    ben = day.guests["Ben"]
    before, old = ben.checkin_at, timers_of(day, "Ben")
    ben.checkin_at = before + hours(2)
    ben.save()
    day.move = Move((before, ben.checkin_at), tuple(zip(old, timers_of(day, "Ben"), strict=True)))


def timers_of(day: Day, name: str) -> list[datetime]:
    """Return when the check-in, and each run planned for it, is due."""
    event = Event.objects.of(day.guests[name]).get(event_name="checkin_due")
    return [event.at, *day.runs(name).values_list("wake_at", flat=True)]


def cancel_cleo(day: Day) -> None:
    cleo = day.guests["Cleo"]
    day.planned_for_cleo = day.runs("Cleo").filter(status="waiting").count()
    cleo.status = Reservation.Status.CANCELLED
    cleo.save()
    day.left_for_cleo = day.runs("Cleo").exclude(status="withdrawn").count()


def delete_dan(day: Day) -> None:
    """Delete a separate instance: the one in ``day`` keeps its primary key."""
    Reservation.objects.get(pk=day.guests["Dan"].pk).delete()


def pay_by_card(day: Day) -> None:
    day.terminal_answers = report_a_payment()


def upload_for_ada(day: Day) -> None:
    Document.objects.create(reservation=day.guests["Ada"], kind="passport")


def write(day: Day, name: str, text: str) -> None:
    day.letters[text] = GuestMessage.objects.create(guest=day.guests[name].guest, text=text)


def write_three_letters(day: Day) -> None:
    for text in ADAS_LETTERS:
        write(day, "Ada", text)


def write_during_claim(day: Day) -> None:
    claim = claims.holder("guest_wrote", match={"guest_id": day.guests["Hana"].guest_id})
    day.claimed_by = claim.owner if claim else None
    write(day, "Hana", "Now there is a puddle!")
    write(day, "Finn", "I pay tomorrow, yes?")


def complain(day: Day, name: str, what: str) -> None:
    day.complaints[what] = Complaint.objects.create(guest=day.guests[name].guest, what=what)


def repair(day: Day, what: str) -> None:
    day.complaints[what].status = Complaint.Status.SOLVED
    day.complaints[what].save()
