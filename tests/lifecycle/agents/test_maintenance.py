"""Agents in long-term operation: new code, parked rows, pruning, the admin, and ``manage.py check``."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.checks.registry import registry
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import AgentManager, EventDefinition, Retry, agent, handler
from django_ai.automation.agents.checks import check_agents
from django_ai.automation.agents.definitions import find_agent, unregister
from django_ai.automation.agents.models import AgentRoute, AgentRun, HandlerExecution
from django_ai.automation.events.models import Event
from django_ai.automation.queues.runtimes.tasks import cleanup_old, poll_due
from tests.apps.front_desk.models import Booking, Case, Message, Person
from tests.support.front_desk import agents, answers, book, the_agent, the_answer, write
from tests.support.rows import change, effects, event_of, leave

HOUR = timedelta(hours=1)
YEAR = timedelta(days=365)


class Entity(BaseModel):
    entity_id: str


class OfGuest(BaseModel):
    guest_id: int
    statuses: list[str] = []
    level: int = 0


def of_booking(**handlers):
    """Declare one code version of the agent "of_booking", with a handler for each keyword argument."""

    def leaving(name):
        def answer(self, event):
            leave(f"{name} {event.entity_id}")

        answer.__name__ = name
        return answer

    body = {name: handler(event)(leaving(name)) for name, event in handlers.items()}
    cls = type("OfBooking", (), {"Context": Entity, "__module__": __name__, **body})
    return agent("of_booking", spawn_on="booking_created")(cls)


# -- new code ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
class TestDeployments:
    def test_an_agent_whose_class_is_gone_is_parked_and_resumed(self, work):
        of_booking(confirmed="booking_confirmed", created="booking_created")
        booking = book()
        unregister(find_agent("of_booking"))
        work()
        run = the_agent()
        assert (run.status, run.lease) == ("parked", None)
        assert f"UnknownAgentError: {run}: no agent is called 'of_booking'" in run.error
        of_booking(confirmed="booking_confirmed", created="booking_created")
        run.resume()
        assert (run.status, run.error) == ("pending", "")
        change(booking, status="confirmed")
        work()
        assert effects() == [f"created {booking.pk}", f"confirmed {booking.pk}"]

    def test_a_living_one_whose_class_is_gone_is_parked_with_its_mailbox(self, work):
        of_booking(confirmed="booking_confirmed")
        booking, other = book(), book()
        work()
        change(booking, status="confirmed")
        unregister(find_agent("of_booking"))
        work()
        run = the_agent(entity_id=str(booking.pk))
        assert run.status == "parked"
        assert "First in its mailbox: confirmed for event" in run.error
        assert the_agent(entity_id=str(other.pk)).status == "active"  # it had no pending execution
        of_booking(confirmed="booking_confirmed")
        run.resume()
        work()
        assert effects() == [f"confirmed {booking.pk}"]

    def test_a_handler_that_is_gone_parks_its_execution_and_nothing_else(self, work):
        of_booking(confirmed="booking_confirmed", noted="booking_noted")
        booking = book()
        work()
        change(booking, status="confirmed", note="x")
        of_booking(noted="booking_noted")
        work()
        assert sorted(answers()) == [("confirmed", "parked"), ("noted", "completed")]
        parked = the_answer(status="parked")
        assert (
            f"UnknownHandlerError: {the_agent()}: 'of_booking' has no handler 'confirmed' for 'booking_confirmed'"
            in parked.error
        )
        assert (parked.attempt, the_agent().status) == (0, "active")
        of_booking(confirmed="booking_confirmed", noted="booking_noted")
        parked.resume()
        work()
        assert effects() == [f"noted {booking.pk}", f"confirmed {booking.pk}"]

    @pytest.mark.parametrize("match", [{}, {"note__in": ["a", "b"]}, {"note__in": "{{ ctx.notes }}"}], ids=str)
    def test_a_context_that_validates_no_more_parks_the_agent_and_nothing_is_lost(self, work, match):
        def declare(context):
            @agent("strict", spawn_on="booking_created", match={"id": "{{ ctx.entity_id }}", **match})
            class Strict:
                Context = context

                @handler("booking_noted")
                def noted(self, event):
                    leave(event.entity_id)

        class Before(BaseModel):
            entity_id: str
            notes: list[str] = ["a", "b"]

        class After(Before):
            room: int

        class Better(Before):
            room: int = 5

        declare(Before)
        booking, healthy = book(), book()
        work()
        declare(After)
        change(booking, note="a")
        work()
        run = the_agent(entity_id=str(booking.pk))
        assert run.status == "parked"
        assert "no longer fits its Context: room: Field required" in run.error
        assert the_agent(entity_id=str(healthy.pk)).status == "active"
        change(booking, note="b")  # occurs while the agent is parked
        declare(Better)
        run.resume()
        work()
        assert effects() == [str(booking.pk)] * 2
        assert answers() == [("noted", "completed")] * 2

    @pytest.mark.slow
    def test_a_new_handler_with_another_match_is_heard_after_poll_due(self, work):
        def declare(second):
            body = {"noted": handler("booking_noted")(lambda self: leave("noted"))}
            if second:
                heard = handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
                body["heard"] = heard(lambda self, event: leave(event.entity.text))
            cls = type("Growing", (), {"Context": OfGuest, "__module__": __name__, **body})
            return agent("growing", match={"guest_id": "{{ ctx.guest_id }}"})(cls)

        declare(False)
        guest = Person.objects.create()
        run = AgentManager.spawn("growing", guest_id=guest.pk)
        resting = AgentManager.spawn("growing", guest_id=Person.objects.create().pk)
        AgentRun.objects.filter(pk=resting.pk).update(status="parked", wake_at=None)
        work()
        assert AgentRoute.objects.filter(run=run).count() == 1
        declare(True)
        write(guest, "too early")
        assert poll_due() >= 1
        assert AgentRoute.objects.filter(run=run).count() == 2
        assert AgentRoute.objects.filter(run=resting).count() == 1
        write(guest, "now")
        write(Person.objects.create(), "of nobody")
        change(book(guest), note="x")
        work()
        assert effects() == ["now", "noted"]
        poll_due()
        assert AgentRoute.objects.filter(run=run).count() == 2  # no route is added twice
        resting.refresh_from_db()
        resting.resume()
        poll_due()
        assert AgentRoute.objects.filter(run=resting).count() == 2

    def test_an_agents_new_match_is_found_after_poll_due(self, work):
        def declare(match):
            body = {"heard": handler("message_received")(lambda self, event: leave(event.entity.text))}
            cls = type("Moved", (), {"Context": OfGuest, "__module__": __name__, **body})
            return agent("moved", match=match)(cls)

        declare({"sender_id": "{{ ctx.guest_id }}"})
        guest = Person.objects.create()
        AgentManager.spawn("moved", guest_id=guest.pk, level=3)
        work()
        declare({"sender_id": "{{ ctx.guest_id }}", "urgency__gte": "{{ ctx.level }}"})
        poll_due()
        write(guest, "calm", urgency=1)
        write(guest, "urgent", urgency=3)
        work()
        assert effects() == ["urgent"]

    def test_new_offsets_of_a_new_handler_reach_events_that_are_armed(self, clock, work):
        of_booking(noted="booking_noted")
        book(starts_at=clock.now + 10 * HOUR)
        work()
        body = {"before": handler("stay_due", offset=-3 * HOUR)(lambda self: leave("before"))}
        cls = type("OfBooking", (), {"Context": Entity, "__module__": __name__, **body})
        agent("of_booking", spawn_on="booking_created")(cls)
        clock.tick(7 * HOUR - timedelta(minutes=5))
        poll_due()  # it runs every five minutes
        assert effects() == []
        clock.tick(timedelta(minutes=5))
        work()
        assert effects() == ["before"]

    @pytest.mark.slow
    def test_an_event_that_was_never_notified_is_found_by_poll_due(self, work, monkeypatch):
        """If a process dies after it filled the mailbox and before it made the agent due, the handler still runs."""
        from django_ai.automation.agents import subscriber

        of_booking(confirmed="booking_confirmed")
        booking = book()
        work()
        monkeypatch.setattr(subscriber, "touch", lambda pks: None)
        change(booking, status="confirmed")
        monkeypatch.undo()
        work()
        assert effects() == []
        poll_due()
        assert effects() == [] or effects() == [f"confirmed {booking.pk}"]
        work()
        assert effects() == [f"confirmed {booking.pk}"]

    @pytest.mark.slow
    def test_what_came_for_an_agent_that_had_ended_is_cancelled_by_poll_due(self, work, monkeypatch):
        from django_ai.automation.agents import subscriber

        of_booking(confirmed="booking_confirmed")
        booking = book()
        work()
        put = subscriber.put_in_mailbox

        def first_the_end(executions):
            AgentManager.complete(the_agent())
            put(executions)

        monkeypatch.setattr(subscriber, "put_in_mailbox", first_the_end)
        change(booking, status="confirmed")
        monkeypatch.undo()
        work()
        assert answers() == [("confirmed", "pending")]
        poll_due()
        assert answers() == [("confirmed", "cancelled")]
        assert effects() == []

    def test_three_workers_that_died_with_it_park_it(self, clock, work):
        of_booking(created="booking_created")
        book()
        AgentRun.objects.update(losses=2, lease="somebody:1:x")
        work()
        run = the_agent()
        assert run.status == "parked"
        assert "3 workers in a row died" in run.error
        run.resume()
        work()
        assert the_agent().status == "active"
        assert len(effects()) == 1


@pytest.mark.django_db(transaction=True)
def test_a_failure_after_the_commit_does_not_break_the_save(work, monkeypatch):
    """If performing an event after the commit fails, the save raises nothing and a worker retries the event."""
    from django_ai.automation.agents.subscriber import AgentSubscriber

    of_booking(created="booking_created")

    def broken(*arguments, **options):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(AgentSubscriber, "notify", broken)
    booking = book()
    monkeypatch.undo()
    event = event_of(booking, "booking_created")
    assert event.pending_notifications
    work(event.wake_at)
    assert effects() == [f"created {booking.pk}"]


# -- pruning -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
class TestCleanup:
    def test_only_what_has_ended_long_ago_goes(self, clock, work):
        of_booking(created="booking_created", noted="booking_noted")
        living, ended, failed = book(), book(), book()
        work()
        AgentManager.complete(the_agent(entity_id=str(ended.pk)))
        AgentManager.cancel(the_agent(entity_id=str(failed.pk)))
        clock.tick(timedelta(days=29))
        cleanup_old()
        assert len(agents()) == 3
        clock.tick(timedelta(days=2))
        cleanup_old()
        assert [run.entity_id for run in agents()] == [str(living.pk)]
        assert not HandlerExecution.objects.exists()
        assert Event.objects.filter(event_name="booking_created").count() == 3  # their entities still exist
        change(living, note="x")
        change(ended, note="x")
        work()
        assert effects()[-1] == f"noted {living.pk}"
        assert len([each for each in effects() if each.startswith("created")]) == 3

    def test_what_is_pending_failed_or_parked_of_a_living_agent(self, clock, work):
        @agent("mixed", spawn_on="booking_created")
        class Mixed:
            Context = Entity

            @handler("booking_created", retry=Retry(2, base_delay=YEAR, max_delay=YEAR))
            def pending(self):
                raise ValueError

            @handler("booking_created", retry=Retry(1))
            def failed(self):
                raise ValueError

            @handler("booking_created")
            def parked(self):
                pass

        book()
        work()
        HandlerExecution.objects.filter(handler="parked").update(status="parked", finished_at=clock.now)
        clock.tick(timedelta(days=60))
        cleanup_old()
        assert sorted(answers()) == [("parked", "parked"), ("pending", "pending")]

    def test_an_event_that_is_needed_stays(self, clock, work):
        @agent("mourning", spawn_on="booking_created")
        class Mourning:
            Context = Entity

            @handler("booking_deleted", retry=Retry(2, base_delay=YEAR, max_delay=YEAR))
            def deleted(self, event):
                if len(effects()) == 0 and clock.now.year == 2030:
                    raise ValueError
                leave(event.entity.note)

        booking = book(note="remembered")
        work()
        booking.delete()
        work()
        clock.tick(YEAR)
        cleanup_old()
        work()
        assert effects() == ["remembered"]

    def test_what_ran_before_a_date_that_moved_far_away_does_not_run_again(self, clock, work):
        """The offset before the new date becomes due, but its execution from the old date prevents a second run."""

        @agent("reminding", spawn_on="booking_created")
        class Reminding:
            Context = Entity

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

        booking = book(starts_at=clock.now + HOUR)
        work()
        assert effects() == ["before"]
        change(booking, starts_at=clock.now + timedelta(days=100))
        clock.tick(timedelta(days=60))
        cleanup_old()
        clock.tick(timedelta(days=40))
        work()
        assert effects() == ["before"]

    def test_the_event_of_an_agent_that_is_not_active_yet_stays(self, clock, work):
        of_booking(created="booking_created")
        book().delete()
        AgentRun.objects.update(wake_at=clock.now + YEAR)
        clock.tick(YEAR)
        cleanup_old()
        work()
        assert len(effects()) == 1

    def test_its_spawning_event_may_go_and_it_lives_on(self, clock, work):
        of_booking(created="booking_created", gone="booking_deleted")
        booking = book()
        work()
        Event.objects.filter(event_name="booking_created").delete()
        assert the_agent().event is None
        booking.delete()
        work()
        assert effects()[-1].startswith("gone")


# -- the admin ---------------------------------------------------------------------------------------------------------

MODELS = {"agentrun": AgentRun, "handlerexecution": HandlerExecution}


def page(model, kind="changelist", *arguments):
    return reverse(f"admin:automation_agents_{model}_{kind}", args=arguments)


def act(client, model, action, *pks):
    answer = client.post(page(model), {"action": action, "_selected_action": list(pks)}, follow=True)
    return answer.content.decode()


@pytest.mark.django_db(transaction=True)
class TestAdmin:
    @pytest.fixture
    def story(self, client, work):
        @agent("story", spawn_on="booking_created")
        class Story:
            Context = Entity

            @handler("booking_created")
            def created(self):
                pass

            @handler("booking_created", retry=Retry(max_attempts=1))
            def failing(self, event):
                if event.entity.note != "mended":
                    raise ValueError("the reason why")

        client.force_login(User.objects.create_superuser("root", password="x"))
        booking = book()
        work()
        return booking, the_agent()

    @pytest.mark.parametrize("model", MODELS)
    def test_pages_show_rows_and_their_details(self, client, story, model):
        listed = client.get(page(model))
        assert listed.status_code == 200
        for row in MODELS[model].objects.all():
            details = client.get(page(model, "change", row.pk))
            assert details.status_code == 200
            assert "the reason why" in details.content.decode() or row.status == "completed"
        assert client.get(page(model), {"q": "story"}).status_code == 200
        assert client.get(page(model), {"status__exact": "active"}).status_code == 200
        assert client.get(page(model, "add")).status_code == 403

    def test_an_agent_says_what_it_waits_for(self, client, story):
        assert "its events" in client.get(page("agentrun")).content.decode()
        AgentRun.objects.update(status="parked", error="somebody must look")
        shown = client.get(page("agentrun")).content.decode()
        assert "an operator, to resume it: somebody must look" in shown
        assert "somebody must look" in shown
        book()
        assert "a worker: due since" in client.get(page("agentrun")).content.decode()

    def test_complete_cancel_and_resume(self, client, story, work):
        _, run = story
        assert "only a parked or failed agent can be resumed" in act(client, "agentrun", "resume", run.pk)
        AgentRun.objects.update(status="parked", wake_at=None)
        assert "Resumed: 1." in act(client, "agentrun", "resume", run.pk)
        assert "Completed: 1." in act(client, "agentrun", "complete", run.pk)
        run.refresh_from_db()
        assert (run.status, run.error) == ("completed", "Completed by root.")
        book()
        work()
        other = agents()[-1]
        assert "Cancelled: 1." in act(client, "agentrun", "cancel", other.pk)
        other.refresh_from_db()
        assert (other.status, other.error) == ("cancelled", "Cancelled by root.")
        assert not AgentRoute.objects.exists()

    def test_a_failed_execution_is_resumed(self, client, story, work):
        booking, _ = story
        failed = the_answer(status="failed")
        assert "the reason why" in client.get(page("handlerexecution")).content.decode()
        Booking.objects.filter(pk=booking.pk).update(note="mended")
        assert "Resumed: 1." in act(client, "handlerexecution", "resume", failed.pk)
        work()
        failed.refresh_from_db()
        assert failed.status == "completed"
        assert "only a failed or parked execution" in act(client, "handlerexecution", "resume", failed.pk)

    @pytest.mark.slow
    def test_who_may_only_look_cannot_act(self, client, story):
        _, run = story
        viewer = User.objects.create_user("viewer", password="x", is_staff=True)
        viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
        client.force_login(viewer)
        assert client.get(page("agentrun")).status_code == 200
        act(client, "agentrun", "cancel", run.pk)
        run.refresh_from_db()
        assert run.status == "active"


# -- manage.py check ---------------------------------------------------------------------------------------------------


def declared(handles="booking_created", *, spawn_on="booking_created", context=OfGuest, match=None, **options):
    """Declare an agent with one handler, and return the problems that the checks report."""
    body = {"answer": handler(handles, **options)(lambda self: None)}
    body["create_context"] = classmethod(lambda cls, event: cls.Context(guest_id=1))
    cls = type("Checked", (), {"Context": context, "__module__": __name__, **body})
    agent("checked", spawn_on=spawn_on, match=match, singleton=False)(cls)
    return check_agents(None)


def only(found):
    (problem,) = found
    return problem


class TestChecks:
    def test_the_check_is_registered_and_what_is_right_is_no_problem(self):
        assert check_agents in registry.get_checks()
        assert declared() == []
        assert declared(match={"guest_id": "{{ ctx.guest_id }}"}) == []
        assert declared("message_received", match={"sender__id": "{{ ctx.guest_id }}"}) == []
        assert declared("message_received", match={}) == []
        assert declared("message_received", match={"status__in": "{{ ctx.statuses }}"}) == []
        assert declared("booking_*", spawn_on=["booking_*", "booking_created"]) == []
        assert declared("stay_due", offset=-HOUR) == []
        assert declared(spawn_on=None) == []
        assert declared("message_received", spawn_on=None) == []

    def test_e301_spawned_by_what_nobody_declares(self):
        problem = only(declared(spawn_on=["booking_created", "bookin_created"]))
        assert problem.id == "automation.E301"
        assert "The agent checked is spawned by the event 'bookin_created'" in problem.msg
        assert "Did you mean 'booking_created'" in problem.hint

    def test_e302_a_handler_of_what_nobody_declares(self):
        problem = only(declared("mesage_received"))
        assert problem.id == "automation.E302"
        assert "the handler answer subscribes to the event 'mesage_received'" in problem.msg
        assert "Did you mean 'message_received'" in problem.hint

    @pytest.mark.parametrize("lookup", ["gest_id", "guest__nam", "guest_id__gt_e", "guest__id__exactly"])
    def test_e303_a_match_that_no_entity_has(self, lookup):
        for problem in (
            only(declared(match={lookup: "{{ ctx.guest_id }}"})),
            only(declared(match={"guest_id": 1, lookup: "{{ ctx.guest_id }}"})),
        ):
            assert problem.id == "automation.E303"
            assert repr(lookup) in problem.msg
            assert "desk.Booking" in problem.msg
        assert "Did you mean 'guest'" in only(declared(match={"gest": 1})).hint

    def test_e303_the_agents_match_on_another_entity(self):
        """A Message has no ``guest_id``, so the agent's match fails the check and the handler needs its own match."""
        problem = only(declared("message_received", match={"guest_id": "{{ ctx.guest_id }}"}))
        assert problem.id == "automation.E303"
        assert "'guest_id', which desk.Message does not have" in problem.msg

    def test_w304_no_match_and_another_entity(self):
        problem = only(declared("message_received"))
        assert problem.id == "automation.W304"
        assert "'message_received' of any desk.Message" in problem.msg
        assert 'match={"field": "{{ ctx.field }}"}' in problem.hint

    def test_w304_of_several_that_spawn_it_one_does_not_declare_it(self):
        assert only(declared("booking_noted", spawn_on=["booking_created", "ticket_created"])).id == "automation.W304"

    def test_w305_a_match_without_equality(self):
        problem = only(declared("message_received", match={"urgency__gte": "{{ ctx.level }}"}))
        assert problem.id == "automation.W305"
        assert "urgency__gte" in problem.msg

    def test_e306_a_list_that_is_compared_with_one_value(self):
        problem = only(declared("message_received", match={"status": "{{ ctx.statuses }}"}))
        assert problem.id == "automation.E306"
        assert "'status' with a list" in problem.msg
        assert "'status__in'" in problem.hint

    def test_e306_also_where_the_list_may_be_missing(self):
        class Perhaps(BaseModel):
            statuses: list[str] | None = None

        problem = only(declared("message_received", match={"status": "{{ ctx.statuses }}"}, context=Perhaps))
        assert problem.id == "automation.E306"

    def test_w107_before_an_immediate_event(self):
        assert only(declared("booking_noted", offset=-HOUR)).id == "automation.W107"

    def test_an_event_that_two_models_declare_needs_the_field_on_one_of_them(self, declare):
        declare(Message, EventDefinition("something"))
        declare(Case, EventDefinition("something"))
        assert declared("something", match={"sender_id": 1}, spawn_on=None) == []
        assert only(declared("something", match={"nobody": 1}, spawn_on=None)).id == "automation.E303"
