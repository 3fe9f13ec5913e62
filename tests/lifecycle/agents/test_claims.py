"""Claims and agents: while an agent holds a claim, other agents and event workflows skip the claimed events."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, Retry, agent, claims, complete, event_workflow, handler, on_event, step
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import EventClaim
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Case, Message, Person
from tests.support.front_desk import answers, book, the_agent, the_answer, write
from tests.support.rows import change, effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


class OfGuest(BaseModel):
    guest_id: int


@pytest.fixture
def desk():
    """Declare the guide's example, and other subscribers to messages: an agent, an event workflow and a callback."""

    @agent("ticket_handler", spawn_on="ticket_created", match={"guest_id": "{{ ctx.guest_id }}"})
    class TicketHandler:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("ticket_created")
        def on_spawn(self, ctx):
            claims.hold("message_received", match={"sender_id": ctx.guest_id})

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def mine(self, event):
            leave(f"holder: {event.entity.text}")

        @handler("ticket_resolved")
        def cleanup(self, ctx):
            claims.release("message_received", match={"sender_id": ctx.guest_id})

    @agent("concierge", spawn_on="booking_created", match={"guest_id": "{{ ctx.guest_id }}"})
    class Concierge:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def chat(self, event):
            leave(f"concierge: {event.entity.text}")

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, ignores_claims=True)
        def audit_all_messages(self, event):
            leave(f"audit: {event.entity.text}")

    @event_workflow("message_received", name="reply")
    class Reply:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def reply(self):
            leave(f"workflow: {Message.objects.get(pk=self.context.entity_id).text}")
            return complete()

    @on_event("message_received", name="mail")
    def mail(event):
        leave(f"on_event: {event.entity.text}")


def heard(text):
    return sorted(each.split(":")[0] for each in effects() if each.endswith(f": {text}"))


EVERYBODY = ["audit", "concierge", "on_event", "workflow"]


@pytest.mark.slow
def test_the_guides_example_from_hold_to_release(desk, work):
    guest = Person.objects.create()
    book(guest)
    work()
    write(guest, "before")
    work()
    assert heard("before") == EVERYBODY

    case = Case.objects.create(guest=guest)
    work()
    holder = the_agent(name="ticket_handler")
    assert holder.holds_claims
    assert claims.holder("message_received", match={"sender_id": guest.pk}).owner == holder
    claimed = write(guest, "claimed")
    write(Person.objects.create(), "of another guest")
    work()
    assert heard("claimed") == ["audit", "holder", "on_event"]
    assert heard("of another guest") == ["on_event", "workflow"]
    skipped = the_answer(handler="chat", event=event_of(claimed, "message_received"))
    assert (skipped.status, skipped.attempt) == ("skipped", 0)
    assert f"claimed by agent ticket_handler #{holder.pk}" in skipped.error
    flow = WorkflowRun.objects.get(event=event_of(claimed, "message_received"))
    assert flow.status == "cancelled"
    assert f"claimed by agent ticket_handler #{holder.pk}" in flow.error

    change(case, status="resolved")
    work()
    assert claims.holder("message_received", match={"sender_id": guest.pk}) is None
    write(guest, "released")
    work()
    assert heard("released") == sorted([*EVERYBODY, "holder"])


def test_completing_the_agent_releases_what_it_holds(desk, work):
    guest = Person.objects.create()
    book(guest)
    Case.objects.create(guest=guest)
    work()
    AgentManager.complete(the_agent(name="ticket_handler"))
    assert not EventClaim.objects.exists()
    write(guest, "free")
    work()
    assert heard("free") == EVERYBODY


@pytest.mark.parametrize("end", [AgentManager.complete, AgentManager.cancel])
def test_from_within_its_handler_the_end_releases_with_the_handlers_commit(work, end):
    @agent("short", spawn_on="ticket_created")
    class Short:
        class Context(BaseModel):
            pass

        @handler("ticket_created")
        def hold_and_end(self, run):
            claims.hold("message_received")
            end(run)
            leave(claims.holder("message_received") is not None)

    Case.objects.create(guest=Person.objects.create())
    work()
    assert effects() == ["True"]
    assert claims.holder("message_received") is None
    assert not EventClaim.objects.exists()


def test_a_claim_that_is_held_when_the_execution_starts_counts(desk, work):
    """Claims are evaluated when an execution starts, even if the event occurred before the claim."""
    guest = Person.objects.create()
    book(guest)
    work()
    concierge = the_agent(name="concierge")
    AgentRun.objects.filter(pk=concierge.pk).update(lease="somebody:1:x", wake_at=concierge.created_at + HOUR)
    write(guest, "first")
    Case.objects.create(guest=guest)
    work()
    AgentRun.objects.filter(pk=concierge.pk).update(lease=None, wake_at=concierge.created_at)
    work()
    assert "concierge" not in heard("first")
    assert "audit" in heard("first")


def test_a_hold_of_a_handler_that_raises_is_rolled_back(work):
    @agent("failing", spawn_on="ticket_created")
    class Failing:
        class Context(BaseModel):
            pass

        @handler("ticket_created", retry=Retry(max_attempts=1))
        def hold_and_raise(self):
            claims.hold("message_received")
            raise ValueError

    Case.objects.create(guest=Person.objects.create())
    work()
    assert answers() == [("hold_and_raise", "failed")]
    assert claims.holder("message_received") is None


def test_a_refused_claim_names_the_holder_and_is_retried(clock, work):
    @agent("greedy", spawn_on="ticket_created")
    class Greedy:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("ticket_created", retry=Retry(3, base_delay=HOUR, max_delay=HOUR))
        def grab(self, ctx):
            claims.hold("message_received", match={"sender_id": ctx.guest_id}, expires_in=None)

    guest = Person.objects.create()
    Case.objects.create(guest=guest)
    Case.objects.create(guest=guest)
    work()
    first, second = AgentRun.objects.order_by("pk")
    assert the_answer(run=first).status == "completed"
    waiting = the_answer(run=second)
    assert (waiting.status, waiting.attempt) == ("pending", 1)
    assert ClaimedError.__name__ in waiting.error
    assert f"is claimed by agent greedy #{first.pk}" in waiting.error
    AgentManager.complete(first)
    clock.tick(HOUR)
    work()
    assert claims.holder("message_received", match={"sender_id": guest.pk}).owner == second


def test_a_claim_that_expires_covers_nothing_more(desk, clock, work):
    guest = Person.objects.create()
    book(guest)
    Case.objects.create(guest=guest)
    work()
    clock.tick(HOUR - timedelta(seconds=1))
    write(guest, "within the hour")
    work()
    clock.tick(timedelta(seconds=1))
    write(guest, "after the hour")
    work()
    assert "concierge" not in heard("within the hour")
    assert "concierge" in heard("after the hour")


def test_a_claim_for_a_number_of_events(desk, clock, work):
    @agent("brief", spawn_on="ticket_created")
    class Brief:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("ticket_created")
        def hold(self, ctx):
            claims.release("message_received", match={"sender_id": ctx.guest_id})
            claims.hold(
                "message_received", match={"sender_id": ctx.guest_id}, priority=5, bump=True, expires_after_events=2
            )

    guest = Person.objects.create()
    book(guest)
    Case.objects.create(guest=guest)
    work()
    for text in ("one", "two", "three"):
        write(guest, text)
        work()
    assert ["concierge" in heard(text) for text in ("one", "two", "three")] == [False, False, True]


def test_held_from_outside_for_an_agent(desk, work):
    guest = Person.objects.create()
    book(guest)
    Case.objects.create(guest=Person.objects.create())
    work()
    with pytest.raises(DefinitionError, match="needs an owner"):
        claims.hold("message_received", match={"sender_id": guest.pk})
    run = the_agent(name="ticket_handler")
    claims.hold("message_received", match={"sender_id": guest.pk}, owner=run)
    write(guest, "claimed")
    work()
    assert "concierge" not in heard("claimed")
    assert claims.release("message_received", match={"sender_id": guest.pk}, owner=run) is True


def test_what_another_agents_handler_skipped_is_not_done_later(desk, work):
    guest = Person.objects.create()
    book(guest)
    case = Case.objects.create(guest=guest)
    work()
    write(guest, "claimed")
    work()
    change(case, status="resolved")
    work()
    assert "concierge" not in heard("claimed")
    assert HandlerExecution.objects.filter(status="pending").count() == 0


def test_the_spawning_event_may_be_claimed_too(work):
    """If the spawning event is claimed, the agent becomes active and its handler for that event is skipped."""

    @agent("owner", spawn_on="ticket_created")
    class Owner:
        class Context(BaseModel):
            pass

        @handler("ticket_created")
        def hold(self):
            claims.hold("booking_created")

    @agent("late", spawn_on="booking_created")
    class Late:
        class Context(BaseModel):
            pass

        @handler("booking_created")
        def created(self):
            leave("created")

        @handler("booking_confirmed")
        def confirmed(self):
            leave("confirmed")

    Case.objects.create(guest=Person.objects.create())
    work()
    book(status="confirmed")
    work()
    assert effects() == ["confirmed"]
    assert sorted(answers(run__name="late")) == [("confirmed", "completed"), ("created", "skipped")]


def test_offsets_of_a_claimed_event_are_skipped_too(clock, work):
    @agent("owner", spawn_on="ticket_created")
    class Owner:
        class Context(BaseModel):
            pass

        @handler("ticket_created")
        def hold(self):
            claims.hold("stay_due", expires_in=None)

    @agent("stay", spawn_on="booking_created")
    class Stay:
        class Context(BaseModel):
            pass

        @handler("stay_due", offset=-HOUR)
        def before(self):
            leave("before")

    Case.objects.create(guest=Person.objects.create())
    book(starts_at=clock.now + 2 * HOUR)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == []
    assert answers(run__name="stay") == [("before", "skipped")]
