"""``why`` of agents: which event spawns them, and which of their handlers get it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, agent, claims, handler, why
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.why import Answer, Standing
from tests.apps.front_desk.models import Booking, Message, Person
from tests.support.agents import OfGuest, answering, counting_companion, of_guest
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
FROM_GUEST = {"sender_id": "{{ ctx.guest_id }}"}


def the_answer(subject, subscriber: str) -> Answer:
    (answer,) = why(subject, subscriber).answers
    return answer


def failing(answer: Answer) -> list[str]:
    return [each.name for each in answer.conditions if each.holds is False]


def condition(answer: Answer, name: str):
    return next(each for each in answer.conditions if each.name == name)


@pytest.fixture
def ada(clock, work):
    """A guest with a booking, and her agent."""
    counting_companion()
    guest = Person.objects.create(name="Ada")
    Booking.objects.create(guest=guest)
    work()
    return guest


def test_the_event_that_spawns_an_agent_is_handled_by_it(ada):
    answers = {each.subscriber: each for each in why(Booking.objects.get(), "companion").answers}
    assert answers["companion"].standing == Standing.RAN
    assert answers["companion"].row == AgentRun.objects.get()
    assert answers["companion.created"].standing == Standing.RAN
    assert condition(answers["companion.created"], "match").found == "the spawning event"
    assert answers["companion.confirmed"].standing == Standing.NOT_YET
    assert failing(answers["companion.confirmed"])[0] == "condition"


def test_a_match_is_compared_field_by_field(ada, work):
    bob = Person.objects.create(name="Bob")
    message = Message.objects.create(sender=bob, text="Hello")
    work()
    answer = the_answer(message, "companion.heard")
    assert (answer.standing, answer.agent) == (Standing.DID_NOT, str(AgentRun.objects.get()))
    assert failing(answer) == ["match: sender_id"]
    compared = condition(answer, "match: sender_id")
    assert (compared.expected, compared.found, compared.is_data) == (str(ada.pk), str(bob.pk), True)
    assert answer.reason == "match: sender_id: the values differ.", "the reason has no value of the Context"

    message = Message.objects.create(sender=ada, text="Hello")
    work()
    answer = the_answer(message, "companion.heard")
    assert (answer.standing, failing(answer)) == (Standing.RAN, [])
    assert condition(answer, "match: sender_id").holds


def test_lookups_that_no_key_expresses_are_compared_by_the_database(clock, work):
    @agent("urgent", spawn_on="booking_created")
    class Urgent:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("message_received", match={**FROM_GUEST, "urgency__gte": 5, "status__in": ["new", "read"]})
        def heard(self, event):
            leave("heard")

    guest = Person.objects.create()
    Booking.objects.create(guest=guest)
    work()
    message = Message.objects.create(sender=guest, urgency=3, status="new")
    work()
    answer = the_answer(message, "urgent.heard")
    assert (answer.standing, failing(answer)) == (Standing.DID_NOT, ["match: urgency__gte"])
    assert condition(answer, "match: urgency__gte").found == "3"
    assert condition(answer, "match: status__in").holds
    assert effects() == []


def test_an_event_before_the_agent_is_not_for_it(clock, work):
    counting_companion()
    guest = Person.objects.create()
    message = Message.objects.create(sender=guest)
    work()
    Booking.objects.create(guest=guest)
    work()
    answer = the_answer(message, "companion.heard")
    assert (answer.standing, failing(answer)) == (Standing.DID_NOT, ["registered since"])


def test_without_any_agent_the_answer_says_so(clock, work):
    counting_companion()
    message = Message.objects.create(sender=Person.objects.create())
    work()
    answer = the_answer(message, "companion.heard")
    assert (answer.standing, failing(answer)) == (Standing.DID_NOT, ["agent"])


def test_an_agent_that_has_ended_gets_no_event(ada, work):
    AgentManager.complete(AgentRun.objects.get())
    message = Message.objects.create(sender=ada)
    work()
    assert the_answer(message, "companion.heard").standing == Standing.DID_NOT
    booking = Booking.objects.get()
    booking.status = "confirmed"
    booking.save()
    work()
    answer = the_answer(booking, "companion.confirmed")
    assert (answer.standing, failing(answer)[0]) == (Standing.DID_NOT, "agent")
    assert condition(answer, "agent").found == "completed"


def test_a_false_condition_of_a_handler_is_recorded_and_asked(clock, work):
    answering(lambda self: leave("x"), "booking_confirmed", condition=lambda event: event.entity.note == "vip")
    booking = Booking.objects.create(guest=Person.objects.create())
    work()
    answer = the_answer(booking, "answering.answer")
    assert condition(answer, "handler condition").holds is False
    booking.status = "confirmed"
    booking.save()
    work()
    answer = the_answer(booking, "answering.answer")
    assert (answer.standing, answer.reason) == (Standing.SKIPPED, "Its condition was false.")


def test_a_condition_of_a_handler_that_raises_is_unknown(clock, work):
    answering(lambda self: leave("x"), "booking_confirmed", condition=lambda event: event.entity.nothing)
    booking = Booking.objects.create(guest=Person.objects.create())
    work()
    asked = condition(the_answer(booking, "answering.answer"), "handler condition")
    assert asked.holds is None
    assert "AttributeError" in asked.found


def test_a_claim_keeps_an_event_from_other_agents(ada, work):
    of_guest("rival", spawn_on="booking_confirmed")
    booking = Booking.objects.get()
    booking.status = "confirmed"
    booking.save()
    work()
    rival = AgentRun.objects.get(name="rival")
    claims.hold("message_received", {"sender_id": ada.pk}, owner=rival)
    message = Message.objects.create(sender=ada)
    work()
    answer = the_answer(message, "companion.heard")
    assert answer.standing == Standing.SKIPPED
    assert "is claimed by agent rival" in answer.reason
    assert the_answer(message, "rival.heard").standing == Standing.RAN


def test_a_second_event_of_a_singleton_spawns_no_second_agent(ada, work):
    second = Booking.objects.create(guest=ada)
    work()
    answers = {each.subscriber: each for each in why(second, "companion").answers}
    assert answers["companion"].standing == Standing.DID_NOT
    assert condition(answers["companion"], "singleton").found.endswith("got the event instead")
    assert answers["companion.created"].standing == Standing.RAN


def test_a_handler_without_a_match_gets_the_events_of_its_own_entity(clock, work):
    class Nothing(BaseModel):
        pass

    @agent("of_booking", spawn_on="booking_created")
    class OfBooking:
        Context = Nothing

        @handler("booking_confirmed")
        def confirmed(self, event):
            leave(event.entity_id)

    mine, other = (Booking.objects.create(guest=Person.objects.create()) for _ in range(2))
    work()
    AgentManager.complete(AgentRun.objects.get(entity_id=str(other.pk)))
    AgentRun.objects.filter(entity_id=str(other.pk)).delete()
    for booking in (mine, other):
        booking.status = "confirmed"
        booking.save()
    work()
    assert the_answer(mine, "of_booking.confirmed").standing == Standing.RAN
    answer = the_answer(other, "of_booking.confirmed")
    assert (answer.standing, failing(answer)) == (Standing.DID_NOT, ["match"])
    assert condition(answer, "match").found == f"desk.booking {other.pk}"


def test_what_lies_in_a_mailbox_says_what_it_waits_for(ada, work):
    message = Message.objects.create(sender=ada)
    AgentRun.objects.update(status="parked", error="It broke.", wake_at=None)
    work()
    answer = the_answer(message, "companion.heard")
    assert answer.standing == Standing.WAITS
    assert "its agent companion" in answer.reason


def test_all_subscribers_of_an_event_are_answered_without_a_name(ada, work):
    message = Message.objects.create(sender=ada)
    work()
    (answer,) = why(message).answers
    assert (answer.subscriber, answer.standing) == ("companion.heard", Standing.RAN)
