"""Events spawn agents; a singleton has at most one unfinished run for each match."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from django_ai.automation import AgentManager, Retry, agent, handler
from django_ai.automation.agents.models import AgentRun
from tests.apps.front_desk.models import Booking, Person
from tests.support.agents import Entity, Nothing, OfGuest, of_guest
from tests.support.front_desk import agents, answers, book, the_agent, write
from tests.support.rows import change, effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


class TestSpawnOn:
    def test_the_event_brings_an_agent_to_life(self, work):
        of_guest()
        booking = book()
        assert [run.status for run in agents()] == ["pending"]
        work()
        run = the_agent()
        assert (run.name, run.status) == ("of_guest", "active")
        assert (run.event.event_name, run.event.entity) == ("booking_created", booking)
        assert run.data == {"guest_id": booking.guest_id, "seen": [str(booking.pk)]}

    def test_an_event_that_does_not_occur_spawns_nothing(self, work):
        of_guest(spawn_on="booking_confirmed")
        booking = book()
        work()
        assert agents() == []
        change(booking, status="confirmed")
        work()
        assert the_agent().status == "active"

    def test_a_rolled_back_save_spawns_nothing(self, work):
        of_guest()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            book()
            raise ZeroDivisionError
        work()
        assert agents() == []

    def test_any_of_several_events_spawns(self, work):
        @agent("either", spawn_on=["booking_confirmed", "booking_created"])
        class Either:
            Context = Entity

            @handler("booking_confirmed")
            def confirmed(self):
                leave("confirmed")

        booking = book()
        work()
        change(booking, status="confirmed")
        work()
        assert [run.event.event_name for run in agents()] == ["booking_created", "booking_confirmed"]
        assert effects() == ["confirmed", "confirmed"]

    def test_a_pattern_spawns(self, work):
        @agent("any_ticket", spawn_on="ticket_*")
        class AnyTicket:
            Context = Entity

            @handler("ticket_*")
            def heard(self, event):
                leave(event.event_name)

        from tests.apps.front_desk.models import Case

        case = Case.objects.create(guest=Person.objects.create())
        work()
        assert effects() == ["ticket_created"]
        change(case, status="resolved")
        work()
        assert effects() == ["ticket_created", "ticket_resolved", "ticket_resolved"]  # there are two agents now

    def test_only_events_of_its_namespace_spawn_it(self, work, declare):
        from django_ai.automation import EventDefinition

        declare(Booking, EventDefinition("booking_created", namespace=lambda booking: booking.note))

        @agent("of_north", spawn_on="booking_created", namespace="north")
        class OfNorth:
            Context = Entity

            @handler("booking_created", namespace="north")
            def heard(self, event):
                leave(event.entity_id)

        book(note="south")
        north = book(note="north")
        work()
        assert effects() == [str(north.pk)]
        assert len(agents()) == 1

    def test_create_context_gets_the_event(self, work):
        got = []

        @agent("curious", spawn_on="booking_created")
        class Curious:
            Context = Nothing

            @classmethod
            def create_context(cls, event):
                got.append((event.event_name, event.entity, event.status))
                return cls.Context()

            @handler("booking_created")
            def heard(self):
                pass

        booking = book()
        work()
        assert got == [("booking_created", booking, "processed")]

    def test_without_create_context_the_entity_id_is_given(self, work):
        @agent("plain", spawn_on="booking_created")
        class Plain:
            Context = Entity

            @handler("booking_created")
            def heard(self):
                pass

        booking = book()
        work()
        assert the_agent().data == {"entity_id": str(booking.pk)}

    def test_a_context_without_required_fields_needs_no_create_context(self, work):
        @agent("bare", spawn_on="booking_created")
        class Bare:
            Context = Nothing

            @handler("booking_created")
            def heard(self):
                leave("heard")

        book()
        work()
        assert effects() == ["heard"]

    def test_an_entity_that_is_deleted_before_the_activation_is_a_snapshot(self, work):
        of_guest()
        booking = book()
        pk, guest = booking.pk, booking.guest_id
        booking.delete()
        work()
        assert the_agent().status == "active"
        assert the_agent().data == {"guest_id": guest, "seen": [str(pk)]}

    @pytest.mark.exact_times
    def test_create_context_that_raises_is_tried_again(self, clock, work):
        @agent("fragile", spawn_on="booking_created", default_retry=Retry(2, base_delay=timedelta(seconds=30)))
        class Fragile:
            Context = Nothing

            @classmethod
            def create_context(cls, event):
                leave("never kept")
                if not event.entity.note:
                    raise ValueError("no note yet")
                return cls.Context()

            @handler("booking_created")
            def heard(self):
                leave("heard")

        booking = book()
        work()
        run = the_agent()
        assert (run.status, run.attempt, run.wake_at) == ("pending", 1, clock.now + timedelta(seconds=30))
        assert "no note yet" in run.error
        assert effects() == []  # the writes of create_context were rolled back
        change(booking, note="now")
        clock.tick(timedelta(seconds=29))
        assert work() == 0
        clock.tick(timedelta(seconds=1))
        work()
        run.refresh_from_db()
        assert (run.status, run.attempt, run.error) == ("active", 0, "")
        assert effects() == ["never kept", "heard"]

    @pytest.mark.exact_times
    def test_create_context_that_raises_for_good_fails_and_is_resumed(self, clock, work):
        broken = [True]

        @agent("fragile", spawn_on="booking_created", default_retry=Retry(max_attempts=2))
        class Fragile:
            Context = Nothing

            @classmethod
            def create_context(cls, event):
                if broken:
                    raise ValueError("broken")
                return cls.Context()

            @handler("booking_created")
            def heard(self):
                leave("heard")

            @handler("booking_noted")
            def noted(self):
                leave("noted")

        booking = book()
        work()
        clock.tick(HOUR)
        work()
        run = the_agent()
        assert (run.status, run.attempt, run.wake_at, run.finished_at) == ("failed", 2, None, clock.now)
        assert "ValueError: broken" in run.error
        change(booking, note="meanwhile")
        clock.tick(HOUR)
        assert effects() == []
        broken.clear()
        AgentManager.resume(run)
        assert (run.status, run.attempt, run.error, run.finished_at) == ("pending", 0, "", None)
        work()
        run.refresh_from_db()
        assert run.status == "active"
        assert effects() == ["heard", "noted"]  # the event that occurred before the activation is replayed

    def test_what_create_context_returns_must_be_a_context(self, work):
        @agent("wrong", spawn_on="booking_created")
        class Wrong:
            Context = Nothing

            @classmethod
            def create_context(cls, event):
                return {"no": "context"}

            @handler("booking_created")
            def heard(self):
                pass

        book()
        work()
        run = the_agent()
        assert (run.status, run.attempt) == ("failed", 1)  # no retry: the next attempt would fail too
        assert "must return a Wrong.Context" in run.error.replace(
            "TestSpawnOn.test_what_create_context_returns_must_be_a_context.<locals>.", ""
        )

    def test_its_cause_is_the_event(self, work):
        of_guest()
        booking = book()
        work()
        event = event_of(booking, "booking_created")
        run = the_agent()
        assert (run.caused_by, run.depth) == (f"event:{event.pk}", event.depth + 1)


class TestSingleton:
    def test_one_lives_for_a_match_and_the_event_is_handed_to_it(self, work):
        of_guest()
        guest = Person.objects.create()
        first, second = book(guest), book(guest)
        work()
        third = book(guest)
        work()
        run = the_agent()
        assert run.data["seen"] == [str(each.pk) for each in (first, second, third)]
        assert answers() == [("created", "completed")] * 3

    def test_each_match_has_its_own(self, work):
        of_guest()
        first, second = book(), book()
        work()
        assert [run.data["seen"] for run in agents("active")] == [[str(first.pk)], [str(second.pk)]]

    def test_a_new_one_is_spawned_after_the_first_has_completed(self, work):
        of_guest()
        guest = Person.objects.create()
        first = book(guest)
        work()
        AgentManager.complete(the_agent())
        second = book(guest)
        work()
        old, new = agents()
        assert (old.status, new.status) == ("completed", "active")
        assert (old.data["seen"], new.data["seen"]) == ([str(first.pk)], [str(second.pk)])

    def test_one_that_is_parked_is_still_the_one(self, work):
        of_guest()
        guest = Person.objects.create()
        book(guest)
        work()
        AgentRun.objects.update(status="parked")
        second = book(guest)
        work()
        assert the_agent().status == "parked"
        the_agent().resume()
        work()
        assert f"created {second.pk}" in effects()

    def test_of_what_is_no_singleton_there_may_be_several(self, work):
        of_guest(singleton=False)
        guest = Person.objects.create()
        first = book(guest)
        work()
        second = book(guest)
        work()
        assert len(agents("active")) == 2
        # Each agent receives the events of its match, so the first agent also receives the second booking.
        assert sorted(effects()) == sorted([f"created {first.pk}", *[f"created {second.pk}"] * 2])

    def test_without_a_match_it_is_one_for_each_entity(self, work):
        @agent("once_each", spawn_on=["booking_created", "booking_confirmed"], singleton=True)
        class OnceEach:
            Context = Entity

            @handler("booking_confirmed")
            def confirmed(self, event):
                leave(event.entity_id)

        one, two = book(), book()
        work()
        change(one, status="confirmed")
        work()
        assert [run.entity_id for run in agents("active")] == [str(one.pk), str(two.pk)]
        assert effects() == [str(one.pk)]

    def test_a_handler_of_the_spawning_event_with_a_match_of_its_own_gets_each_event(self, work):
        """Both events are handled even if the agent of the younger event is activated first."""

        @agent("of_writer", spawn_on="message_received", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
        class OfWriter:
            Context = OfGuest

            @classmethod
            def create_context(cls, event):
                return cls.Context(guest_id=event.entity.sender_id)

            @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
            def heard(self, event):
                leave(event.entity.text)

            @handler("booking_created")
            def booked(self):
                pass

        guest = Person.objects.create()
        write(guest, "first")
        write(guest, "second")
        first, second = agents()
        # Simulate a slow worker that has leased the older agent.
        AgentRun.objects.filter(pk=first.pk).update(wake_at=first.created_at + HOUR)
        work()
        AgentRun.objects.filter(pk=first.pk).update(wake_at=first.created_at)
        work()
        assert [run.pk for run in agents()] == [second.pk]
        assert sorted(effects()) == ["first", "second"]

    def test_the_event_is_the_agents_own_whatever_its_match_says_of_that_entity(self, work):
        """The match finds only the leader's bookings. The agent handles all bookings, because each one spawns it."""
        leader = Person.objects.create(name="leader")

        @agent("group", spawn_on="booking_created", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
        class Group:
            Context = OfGuest

            @classmethod
            def create_context(cls, event):
                return cls.Context(guest_id=leader.pk)

            @handler("booking_created")
            def created(self, event):
                leave(event.entity_id)

        bookings = [book(), book(), book(leader)]
        work()
        assert sorted(effects()) == sorted(str(each.pk) for each in bookings)
        assert len(agents()) == 1

    def test_an_event_that_ends_the_one_that_lives_spawns_no_other(self, work):
        """The agent that was active when the event occurred has handled it, so the event spawns no other agent."""

        @agent("short_lived", spawn_on="booking_created", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
        class ShortLived:
            Context = OfGuest

            @classmethod
            def create_context(cls, event):
                return cls.Context(guest_id=event.entity.guest_id)

            @handler("booking_created")
            def created(self, event, run):
                leave(event.entity_id)
                if event.entity.note == "the last":
                    AgentManager.complete(run)

        guest = Person.objects.create()
        first = book(guest)
        work()
        last = book(guest, note="the last")
        work()
        assert effects() == [str(first.pk), str(last.pk)]
        assert [run.status for run in agents()] == ["completed"]

    def test_what_create_context_wrote_for_a_second_one_is_rolled_back(self, work):
        @agent("careful", spawn_on="booking_created", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
        class Careful:
            Context = OfGuest

            @classmethod
            def create_context(cls, event):
                leave(f"context for {event.entity_id}")
                return cls.Context(guest_id=event.entity.guest_id)

            @handler("booking_created")
            def created(self):
                pass

        guest = Person.objects.create()
        first = book(guest)
        work()
        book(guest)
        work()
        assert effects() == [f"context for {first.pk}"]

    def test_a_deployment_that_makes_it_a_singleton_counts_those_who_live(self, work):
        from django_ai.automation.queues.runtimes.tasks import poll_due

        of_guest(singleton=False)
        guest = Person.objects.create()
        book(guest)
        work()
        of_guest(singleton=True)
        poll_due()
        book(guest)
        work()
        assert len(agents("active")) == 1
