"""``AgentManager``: spawn, list, complete, cancel and resume, called outside and inside a handler."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel, ValidationError

from django_ai.automation import AgentManager, Retry, agent, engine, handler
from django_ai.automation.agents.models import AgentRoute, AgentRun, HandlerExecution
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, NotResumableError, UnknownAgentError
from tests.apps.front_desk.models import Person
from tests.support.agents import Entity, OfGuest, of_guest
from tests.support.front_desk import agents, answers, book, the_agent, the_answer, write
from tests.support.rows import change, effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


class TestManager:
    def test_spawn_with_an_event(self, work):
        of_guest(spawn_on=None)
        booking = book()
        work()
        assert agents() == []
        run = AgentManager.spawn("of_guest", event=event_of(booking, "booking_created"))
        assert isinstance(run, AgentRun)
        assert (run.status, run.data) == ("active", {"guest_id": booking.guest_id, "seen": []})
        work()
        work()
        assert effects() == [f"created {booking.pk}"]
        write(booking.guest, "afterwards")
        work()
        assert effects() == [f"created {booking.pk}", "heard afterwards"]

    def test_spawn_with_an_event_replays_what_its_entity_has_done_since(self, clock, work):
        @agent("own")
        class Own:
            Context = Entity

            @handler("booking_confirmed")
            def confirmed(self):
                leave("confirmed")

        booking = book()
        clock.tick(HOUR)
        change(booking, status="confirmed")
        clock.tick(HOUR)
        AgentManager.spawn("own", event=event_of(booking, "booking_created"))
        work()
        assert effects() == ["confirmed"]

    def test_spawn_with_values_builds_the_context(self, work):
        @agent("by_hand", match={"guest_id": "{{ ctx.guest_id }}"})
        class ByHand:
            Context = OfGuest

            @handler("booking_created")
            def created(self, event):
                leave(event.entity_id)

        guest = Person.objects.create()
        run = AgentManager.spawn("by_hand", guest_id=guest.pk, seen=["a"])
        assert run.data == {"guest_id": guest.pk, "seen": ["a"]}
        work()
        booking = book(guest)
        book()
        work()
        assert effects() == [str(booking.pk)]

    def test_spawn_with_values_gives_them_to_create_context(self):
        @agent("by_hand", match={"guest_id": "{{ ctx.guest_id }}"})
        class ByHand:
            Context = OfGuest

            @classmethod
            def create_context(cls, event=None, *, guest):
                return cls.Context(guest_id=guest.pk, seen=["made"])

            @handler("booking_created")
            def created(self):
                pass

        guest = Person.objects.create()
        assert AgentManager.spawn("by_hand", guest=guest).data == {"guest_id": guest.pk, "seen": ["made"]}
        booking = book(guest)
        run = AgentManager.spawn("by_hand", event_of(booking, "booking_created"), guest=guest)
        assert run.data["guest_id"] == guest.pk

    def test_spawn_takes_the_class(self):
        cls = of_guest()
        booking = book()
        run = AgentManager.spawn(cls, event=event_of(booking, "booking_created"))
        assert run.name == "of_guest"
        with pytest.raises(DefinitionError, match="is not an agent"):
            AgentManager.spawn(Person)

    def test_an_unknown_name_is_refused_with_the_nearest(self):
        of_guest()
        with pytest.raises(UnknownAgentError, match="Did you mean 'of_guest'"):
            AgentManager.spawn("of_gest")
        with pytest.raises(UnknownAgentError, match="Did you mean 'of_guest'"):
            AgentManager.list_active("of_gests")

    def test_what_is_no_event_is_refused(self):
        of_guest()
        with pytest.raises(DefinitionError, match="give an Event"):
            AgentManager.spawn("of_guest", event=book())

    def test_values_that_the_context_refuses_are_the_callers_error(self):
        @agent("by_hand")
        class ByHand:
            Context = OfGuest

            @handler("booking_created")
            def created(self):
                pass

        with pytest.raises(ValidationError):
            AgentManager.spawn("by_hand", guest_id="nobody")
        assert agents() == []

    def test_a_singleton_that_lives_is_returned_and_gets_the_event(self, work):
        of_guest(spawn_on=None)
        guest = Person.objects.create()
        first, second = book(guest), book(guest)
        run = AgentManager.spawn("of_guest", event=event_of(first, "booking_created"))
        work()
        again = AgentManager.spawn("of_guest", event=event_of(second, "booking_created"))
        assert again.pk == run.pk
        assert AgentManager.spawn("of_guest", event=event_of(second, "booking_created")).pk == run.pk
        work()
        assert effects() == [f"created {first.pk}", f"created {second.pk}"]
        assert len(agents()) == 1

    def test_spawned_in_a_transaction_that_rolls_back_it_leaves_nothing(self, work):
        of_guest(spawn_on=None)
        booking = book()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            AgentManager.spawn("of_guest", event=event_of(booking, "booking_created"))
            raise ZeroDivisionError
        work()
        assert agents() == []
        assert not AgentRoute.objects.exists()
        assert not HandlerExecution.objects.exists()

    def test_a_singletons_second_spawn_does_not_spoil_the_callers_transaction(self, work):
        of_guest(spawn_on=None)
        guest = Person.objects.create()
        first, second = book(guest), book(guest)
        run = AgentManager.spawn("of_guest", event=event_of(first, "booking_created"))
        with transaction.atomic():
            leave("before")
            assert AgentManager.spawn("of_guest", event=event_of(second, "booking_created")).pk == run.pk
            leave("after")
        work()
        assert effects()[:2] == ["before", "after"]
        assert sorted(effects()[2:]) == sorted([f"created {first.pk}", f"created {second.pk}"])

    def test_spawn_within_a_handler_commits_with_it(self, work):
        of_guest("child", spawn_on=None)

        @agent("parent", spawn_on="booking_created")
        class Parent:
            Context = Entity

            @handler("booking_created")
            def created(self, event):
                AgentManager.spawn("child", event=event)
                if event.entity.note == "no":
                    raise ValueError

        book(note="no")
        booking = book()
        work()
        child = the_agent(name="child")
        assert child.data["guest_id"] == booking.guest_id
        parent = the_agent(name="parent", entity_id=str(booking.pk))
        assert (child.caused_by, child.depth) == (
            f"agent:{parent.pk}:created",
            event_of(booking, "booking_created").depth + 1,
        )

    def test_list_active_lists_those_that_live(self, work):
        of_guest()
        of_guest("other")
        book()
        work()
        assert {run.name for run in AgentManager.list_active()} == {"of_guest", "other"}
        (run,) = AgentManager.list_active("of_guest")
        assert AgentManager.list_active("of_guest").count() == 1  # a QuerySet
        AgentManager.complete(run)
        assert not AgentManager.list_active("of_guest").exists()

    def test_complete_ends_it_with_all_that_it_had(self, clock, work):
        @agent("busy", spawn_on="booking_created")
        class Busy:
            Context = Entity

            @handler("booking_created", retry=Retry(base_delay=HOUR, max_delay=HOUR))
            def created(self):
                raise ValueError("try again")

            @handler("booking_confirmed")
            def confirmed(self):
                leave("confirmed")

        booking = book()
        work()
        run = the_agent()
        assert AgentRoute.objects.filter(run=run).exists()
        assert AgentManager.complete(run, "enough") is True
        assert (run.status, run.error, run.finished_at, run.wake_at) == ("completed", "enough", clock.now, None)
        assert not AgentRoute.objects.exists()
        execution = the_answer()
        assert (execution.status, execution.finished_at) == ("cancelled", clock.now)
        change(booking, status="confirmed")
        work(clock.now + 2 * HOUR)
        assert effects() == []
        assert AgentManager.complete(run) is False

    def test_complete_before_it_is_active(self, work):
        of_guest()
        book()
        assert AgentManager.complete(the_agent().pk) is True
        work()
        assert the_agent().status == "completed"
        assert effects() == []

    def test_complete_in_a_transaction_that_rolls_back_changes_nothing(self, work):
        of_guest()
        booking = book()
        work()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            AgentManager.complete(the_agent())
            raise ZeroDivisionError
        write(booking.guest, "still there")
        work()
        assert effects()[-1] == "heard still there"

    @pytest.mark.exact_times
    @pytest.mark.parametrize("atomic", [True, False])
    def test_from_within_its_handler_it_ends_with_the_handlers_commit(self, clock, work, atomic):
        @agent("short", spawn_on="booking_created")
        class Short:
            class Context(BaseModel):
                ended: bool = False

            @handler("booking_created", atomic=atomic)
            def created(self, ctx, run):
                assert AgentManager.complete(run, "done here") is True
                assert AgentRun.objects.get(pk=run.pk).status == "active"
                ctx.ended = True
                leave("ended")

            @handler("booking_created")
            def another(self):
                leave("another")

            @handler("booking_confirmed")
            def confirmed(self):
                leave("confirmed")

        booking = book()
        work()
        run = the_agent()
        assert (run.status, run.error, run.data, run.finished_at) == (
            "completed",
            "done here",
            {"ended": True},
            clock.now,
        )
        assert answers() == [("created", "completed"), ("another", "cancelled")]
        change(booking, status="confirmed")
        work()
        assert effects() == ["ended"]
        assert not AgentRoute.objects.exists()

    def test_a_handler_that_ends_its_agent_and_raises_has_not_ended_it(self, work):
        @agent("unsure", spawn_on="booking_created")
        class Unsure:
            Context = Entity

            @handler("booking_created", retry=Retry(max_attempts=1))
            def created(self, run):
                AgentManager.complete(run)
                raise ValueError

        book()
        work()
        assert the_agent().status == "active"
        assert answers() == [("created", "failed")]

    def test_a_handler_may_end_another_agent(self, work):
        of_guest("victim", spawn_on=None)

        @agent("killer", spawn_on="booking_created")
        class Killer:
            Context = Entity

            @handler("booking_created")
            def created(self):
                for run in AgentManager.list_active("victim"):
                    AgentManager.cancel(run, "by the killer")

        first = book()
        victim = AgentManager.spawn("victim", event=event_of(first, "booking_created"))
        work()
        victim.refresh_from_db()
        assert (victim.status, victim.error) == ("cancelled", "by the killer")

    def test_complete_from_outside_while_its_handler_runs(self, work):
        """If an agent is completed while its handler runs, the handler's execution is cancelled."""

        @agent("slow", spawn_on="booking_created")
        class Slow:
            Context = Entity

            @handler("booking_created", atomic=False)
            def created(self, run):
                from django_ai.automation.agents.ending import end_agents
                from django_ai.automation.queues.causation import running

                with running(None):  # simulates another process
                    end_agents(AgentRun.objects.filter(pk=run.pk), "completed", "from outside", run.created_at)

        book()
        work()
        run = the_agent()
        assert (run.status, run.error) == ("completed", "from outside")
        assert answers() == [("created", "cancelled")]

    def test_cancel(self, clock, work):
        of_guest()
        book()
        work()
        run = the_agent()
        assert AgentManager.cancel(run) is True
        assert (run.status, run.error, run.finished_at) == ("cancelled", "Cancelled.", clock.now)
        assert not AgentRoute.objects.exists()

    def test_only_what_is_parked_or_failed_is_resumed(self, work):
        of_guest()
        book()
        work()
        with pytest.raises(NotResumableError, match="is active"):
            AgentManager.resume(the_agent())
        AgentManager.cancel(the_agent())
        with pytest.raises(NotResumableError, match="is cancelled"):
            AgentManager.resume(the_agent().pk)

    def test_a_step_of_a_workflow_may_spawn_one(self, work):
        from django_ai.automation import complete, step, workflow

        of_guest(spawn_on=None)

        @workflow("spawns")
        class Spawns:
            class Context(BaseModel):
                event_id: int

            @step(start=True)
            def spawn(self):
                AgentManager.spawn("of_guest", event=Event.objects.get(pk=self.context.event_id))
                return complete()

        booking = book()
        engine.start("spawns", event_id=event_of(booking, "booking_created").pk)
        work()
        assert effects() == [f"created {booking.pk}"]

    def test_a_workflows_context_may_have_a_field_called_event(self):
        """``AgentManager.spawn`` has an ``event`` argument. ``engine.start`` has none, so it passes on the field."""
        from django_ai.automation import complete, step, workflow

        @workflow("about_an_event")
        class About:
            class Context(BaseModel):
                event: int

            @step(start=True)
            def first(self):
                return complete()

        assert engine.start("about_an_event", event=5).data == {"event": 5}
