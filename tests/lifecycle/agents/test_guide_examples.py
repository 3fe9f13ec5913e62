"""The examples from the guide's section on agents, as written there."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import EventDefinition
from django_ai.automation.agents.core import AgentManager, agent, handler
from django_ai.automation.events import claims
from django_ai.automation.workflows.core import Retry
from tests.apps.reservations.models import Guest, Reservation, is_confirmed
from tests.support.front_desk import agents, answers, book, the_agent, the_answer
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


@pytest.fixture
def reservations(declare):
    declare(
        Reservation,
        EventDefinition("reservation_created"),
        EventDefinition("reservation_confirmed", condition=is_confirmed),
        EventDefinition("checkin_due", date_field="checkin_at", condition=is_confirmed),
        EventDefinition("checkout_due", date_field="checkout_at", condition=is_confirmed),
    )


@pytest.fixture
def journey(reservations):
    def send_email(name, text):
        leave(f"email {name}: {text}")

    def send_sms(name, text):
        leave(f"sms {name}: {text}")

    def send_message(name, text):
        leave(f"message {name}: {text}")

    @agent(
        "reservation_journey",
        spawn_on="reservation_created",
        match={"id": "{{ ctx.reservation_id }}"},  # How to find existing agent for events
        singleton=True,  # One agent per match
    )
    class ReservationJourney:
        class Context(BaseModel):
            reservation_id: int
            guest_name: str = ""
            reminder_sent: bool = False
            welcome_sent: bool = False

        @classmethod
        def create_context(cls, event):
            reservation = event.entity
            return cls.Context(
                reservation_id=reservation.id,
                guest_name=reservation.guest.name,
            )

        @handler("reservation_confirmed")
        def send_confirmation(self, ctx):
            """Runs immediately when reservation is confirmed"""
            send_email(ctx.guest_name, "Your booking is confirmed!")

        @handler("checkin_due", offset=timedelta(hours=-3))
        def send_pre_checkin(self, ctx):
            """Runs 3 hours BEFORE checkin time"""
            send_sms(ctx.guest_name, "Check-in opens soon!")
            ctx.reminder_sent = True

        @handler("checkin_due")
        def send_welcome(self, ctx):
            """Runs AT checkin time"""
            send_message(ctx.guest_name, "Welcome! Your room is ready.")
            ctx.welcome_sent = True

        @handler("checkout_due", offset=timedelta(hours=1))
        def send_feedback_request(self, ctx):
            """Runs 1 hour AFTER checkout"""
            send_email(ctx.guest_name, "How was your stay?")

    return ReservationJourney


def test_the_basic_structure(journey, clock, work):
    reservations = [
        Reservation.objects.create(
            guest=Guest.objects.create(name=name), checkin_at=clock.now + 5 * HOUR, checkout_at=clock.now + 24 * HOUR
        )
        for name in ("O'Brien", "Ada")
    ]
    work()
    assert effects() == []
    first, second = agents("active")
    assert first.data == {
        "reservation_id": reservations[0].pk,
        "guest_name": "O'Brien",
        "reminder_sent": False,
        "welcome_sent": False,
    }

    reservations[0].status = "confirmed"
    reservations[0].save()
    work()
    assert effects() == ["email O'Brien: Your booking is confirmed!"]
    clock.tick(2 * HOUR)
    work()
    assert effects()[1:] == ["sms O'Brien: Check-in opens soon!"]
    first.refresh_from_db()
    assert (first.data["reminder_sent"], first.data["welcome_sent"]) == (True, False)
    clock.tick(3 * HOUR)
    work()
    assert effects()[2:] == ["message O'Brien: Welcome! Your room is ready."]
    first.refresh_from_db()
    assert (first.data["reminder_sent"], first.data["welcome_sent"]) == (True, True)
    clock.tick(20 * HOUR - timedelta(seconds=1))
    work()
    assert len(effects()) == 3
    clock.tick(timedelta(seconds=1))
    work()
    assert effects()[3:] == ["email O'Brien: How was your stay?"]
    # An agent has no last step: it stays active until it is ended. The other reservation was never confirmed.
    assert [run.pk for run in agents("active")] == [first.pk, second.pk]
    assert answers(run=second) == []


def test_agent_management(journey, work):
    agent_runs = AgentManager.list_active("reservation_journey")
    reservation = Reservation.objects.create(guest=Guest.objects.create(name="Ada"), status="confirmed")
    some_event = event_of(reservation, "reservation_created")

    run = AgentManager.spawn("reservation_journey", event=some_event)
    work()
    active = AgentManager.list_active("reservation_journey")
    assert list(active) == list(agent_runs) == [run]
    assert effects() == ["email Ada: Your booking is confirmed!"]

    (agent_run,) = active
    claims.hold("checkin_due", owner=agent_run)
    assert claims.holder("checkin_due").owner == run
    AgentManager.complete(agent_run)
    assert claims.holder("checkin_due") is None
    assert list(AgentManager.list_active("reservation_journey")) == []


def test_handler_conditions(reservations, clock, work):
    def guest_is_vip(event, ctx):
        return ctx.is_vip

    @agent("vips", spawn_on="reservation_created", match={"id": "{{ ctx.reservation_id }}"})
    class Vips:
        class Context(BaseModel):
            reservation_id: int
            room_number: str
            is_vip: bool

        @classmethod
        def create_context(cls, event):
            note = event.entity.note
            return cls.Context(reservation_id=event.entity.id, room_number=f"for {note}", is_vip=note == "vip")

        @handler("checkin_due", condition=guest_is_vip)
        def vip_welcome(self, ctx):
            """Only runs if guest is VIP"""
            leave(f"champagne {ctx.room_number}")

    for note in ("vip", "nobody"):
        Reservation.objects.create(status="confirmed", note=note, checkin_at=clock.now + HOUR)
    clock.tick(HOUR)
    work()
    assert effects() == ["champagne for vip"]
    assert sorted(answers()) == [("vip_welcome", "completed"), ("vip_welcome", "skipped")]


@pytest.mark.exact_times
def test_handler_retries(reservations, clock, work):
    charged = []

    @agent("payments", spawn_on="reservation_created", match={"id": "{{ ctx.reservation_id }}"})
    class Payments:
        class Context(BaseModel):
            reservation_id: int
            payment_id: str = "p1"

        @classmethod
        def create_context(cls, event):
            return cls.Context(reservation_id=event.entity.id)

        @handler("checkin_due", retry=Retry(max_attempts=3, base_delay=timedelta(seconds=30)))
        def process_payment(self, ctx):
            """Retries up to 3 times with exponential backoff"""
            charged.append((ctx.payment_id, clock.now))
            if len(charged) < 3:
                raise ConnectionError

    begin = clock.now
    Reservation.objects.create(status="confirmed", checkin_at=begin)
    for _ in range(10):
        work()
        clock.tick(timedelta(seconds=30))
    assert charged == [("p1", begin + timedelta(seconds=seconds)) for seconds in (0, 30, 90)]
    assert (the_answer().status, the_answer().attempt, the_agent().status) == ("completed", 3, "active")


def test_spawned_by_a_date(clock, work):
    """A scheduled event spawns an agent, and the agent's handlers for that event run as for any other event."""

    @agent("arrival", spawn_on="stay_due")
    class Arrival:
        class Context(BaseModel):
            entity_id: str

        @handler("stay_due")
        def at(self):
            leave("at")

        @handler("stay_due", offset=HOUR)
        def after(self):
            leave("after")

    book(starts_at=clock.now + 2 * HOUR)
    work()
    assert agents() == []
    clock.tick(2 * HOUR)
    work()
    assert (effects(), the_agent().status) == (["at"], "active")
    clock.tick(HOUR)
    work()
    assert effects() == ["at", "after"]


def test_spawned_by_a_deletion(work):
    @agent("mourning", spawn_on="booking_deleted", match={"guest_id": "{{ ctx.guest_id }}"})
    class Mourning:
        class Context(BaseModel):
            guest_id: int
            note: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id, note=event.entity.note)

        @handler("booking_deleted")
        def deleted(self, ctx):
            leave(ctx.note)

    booking = book(note="remembered")
    booking.delete()
    work()
    assert effects() == ["remembered"]


def test_one_event_spawns_agents_of_several_kinds(work):
    for name in ("one", "two"):

        @agent(name, spawn_on="booking_created")
        class Kind:
            class Context(BaseModel):
                entity_id: str

            @handler("booking_created")
            def created(self, run):
                leave(run.name)

        Kind.__name__ = name

    book()
    work()
    assert sorted(effects()) == ["one", "two"]
