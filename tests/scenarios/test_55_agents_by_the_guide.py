"""Scenario 55: an agent without ``singleton=``, and an agent that is spawned manually, as in the guide.

A system check warns if several agents can have the same match and ``singleton=`` is missing.
"""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation.agents.checks import check_agents
from django_ai.automation.agents.core import AgentManager, agent, handler
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.exceptions import DefinitionError
from tests.apps.front_desk.models import Booking, Message, Person
from tests.support.rows import effects, event_of, leave


def guest_support(match=None, **options):
    """Declare the agent ``guest_support`` of the guide, with ``options`` for ``@agent``."""

    @agent("guest_support", spawn_on="booking_created", match=match or {"guest_id": "{{ ctx.guest_id }}"}, **options)
    class GuestSupport:
        class Context(BaseModel):
            guest_id: int
            booking_id: int

        @classmethod
        def create_context(cls, event):
            booking = event.entity
            return cls.Context(guest_id=booking.guest_id, booking_id=booking.id)

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def handle_message(self, ctx):
            leave(f"answer for booking {ctx.booking_id}")

        @handler("booking_confirmed")
        def confirmed(self, ctx):
            pass


def warned() -> list[str]:
    return [str(each.id) for each in check_agents(None)]


@pytest.mark.django_db(transaction=True)
def test_55_each_of_two_agents_of_one_guest_answers(work):
    guest_support()
    guest = Person.objects.create()
    one, two = Booking.objects.create(guest=guest), Booking.objects.create(guest=guest)
    work()
    Message.objects.create(sender=guest)
    work()
    assert sorted(effects()) == [f"answer for booking {each.pk}" for each in (one, two)]


@pytest.mark.django_db(transaction=True)
def test_55_a_singleton_answers_once(work):
    guest_support(singleton=True)
    guest = Person.objects.create()
    first = Booking.objects.create(guest=guest)
    work()
    Booking.objects.create(guest=guest)
    work()
    Message.objects.create(sender=guest)
    work()
    assert effects() == [f"answer for booking {first.pk}"]


def test_55_a_check_asks_which_is_meant():
    guest_support()
    (problem,) = check_agents(None)
    assert problem.id == "automation.W307"
    assert "guest_support: each 'booking_created' spawns one, and all with the same guest_id" in problem.msg
    assert "singleton=True" in problem.hint
    assert "singleton=False" in problem.hint


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (None, {"singleton": True}),
        (None, {"singleton": False}),
        ({"id": "{{ ctx.booking_id }}"}, {}),
        ({"pk": "{{ ctx.booking_id }}"}, {}),
        ({"guest_id": "{{ ctx.guest_id }}", "id": "{{ ctx.booking_id }}"}, {}),
    ],
)
def test_55_the_check_is_silent_where_it_is_said_or_clear(match, options):
    guest_support(match, **options)
    assert warned() == []


@pytest.mark.parametrize("lookup", ["booking_id", "booking", "booking__id", "booking__pk"])
def test_55_the_check_knows_a_key_of_what_spawns(lookup):
    @agent("writers", spawn_on="booking_created", match={lookup: "{{ ctx.entity_id }}"})
    class Writers:
        class Context(BaseModel):
            entity_id: int

        @handler("message_received")
        def heard(self):
            pass

    assert warned() == []


@pytest.mark.django_db
def test_55_spawned_by_hand_with_the_fields_of_its_context(work):
    guest_support()
    guest = Person.objects.create()
    booking = Booking.objects.create(guest=guest)
    run = AgentManager.spawn("guest_support", guest_id=guest.pk, booking_id=booking.pk)
    assert run.data == {"guest_id": guest.pk, "booking_id": booking.pk}
    again = AgentManager.spawn("guest_support", event=event_of(booking, "booking_created"))
    assert again.data == run.data


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "needs an event, and none was given. Give event=, or the fields of the Context: guest_id, booking_id"),
        ({"guest": 5}, r"its Context has no field 'guest' \(it has: guest_id, booking_id\)"),
    ],
)
def test_55_spawned_by_hand_without_what_it_needs(arguments, said):
    guest_support()
    with pytest.raises(DefinitionError, match=said):
        AgentManager.spawn("guest_support", **arguments)
    assert not AgentRun.objects.exists()
