"""Events that arrived after the spawning event are replayed once to an agent that becomes active.

Without a match, an agent receives the events of its own entity.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from django_ai.automation import AgentManager, agent, handler
from django_ai.automation.agents import manager
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.commit_batch import CommitBatch
from django_ai.automation.events.matching import lookback
from django_ai.automation.events.models import Event
from django_ai.automation.queues.claim import claim_rows
from django_ai.automation.queues.drain import drain
from tests.apps.front_desk.models import Booking, GroupBooking, Person
from tests.apps.reservations.models import Reservation
from tests.support.agents import Entity, of_guest
from tests.support.front_desk import agents, answers, book, the_agent, write
from tests.support.rows import change, effects, event_of, leave, status_of

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


class TestCatchUp:
    @pytest.mark.parametrize("begins_with", ["booking_created", "stay_due"])
    def test_an_offset_that_was_skipped_is_never_handed_over(self, clock, work, begins_with):
        @agent("own", spawn_on=begins_with)
        class Own:
            Context = Entity

            @handler("stay_due", offset=HOUR)
            def after(self):
                leave("an hour after")

        booking = book(starts_at=clock() + HOUR)
        clock.tick(HOUR)
        drain(models=[Event])
        Booking.objects.filter(pk=booking.pk)._raw_delete("default")
        clock.tick(HOUR)
        drain(models=[Event])
        assert event_of(booking, "stay_due").error.startswith("Skipped")
        work()
        assert effects() == []
        assert answers() == []

    def test_a_handler_of_the_spawning_event_runs_exactly_once(self, work):
        of_guest()
        booking = book()
        work()
        work()
        assert effects() == [f"created {booking.pk}"]
        assert answers() == [("created", "completed")]

    def test_a_handler_of_the_spawning_event_runs_once_without_any_match(self, work):
        @agent("own", spawn_on="booking_created")
        class Own:
            Context = Entity

            @handler("booking_created")
            def created(self, event):
                leave(event.entity_id)

        one, two = book(), book()
        work()
        assert effects() == [str(one.pk), str(two.pk)]

    def test_events_of_its_own_entity_are_replayed(self, work):
        @agent("own", spawn_on="booking_created")
        class Own:
            Context = Entity

            @handler("booking_confirmed")
            def confirmed(self):
                leave("confirmed")

            @handler("booking_noted")
            def noted(self, event):
                leave("noted")

        booking = book()
        change(booking, status="confirmed")
        for note in "abc":
            change(booking, note=note)
        book(status="confirmed")  # another booking has another agent
        assert [run.status for run in agents()] == ["pending", "pending"]
        work()
        assert sorted(effects()) == ["confirmed", "confirmed", "noted", "noted", "noted"]
        work()
        assert HandlerExecution.objects.count() == 5

    def test_events_of_other_entities_are_replayed_by_match(self, work):
        of_guest()
        booking = book()
        write(booking.guest, "while it was none")
        write(Person.objects.create(), "of somebody else")
        work()
        write(booking.guest, "later")
        work()
        assert effects() == [f"created {booking.pk}", "heard while it was none", "heard later"]

    @pytest.mark.parametrize("spawned_by", ["booking_created", "booking_confirmed"])
    def test_what_is_saved_after_the_spawning_event_is_replayed_though_it_occurs_first(
        self, work, monkeypatch, spawned_by
    ):
        """Another process has the spawning event in hand, or the one that saved it died."""
        guest = Person.objects.create()
        booking = book(guest)
        work()
        of_guest(spawn_on=spawned_by)

        @agent("own", spawn_on=spawned_by)
        class Own:
            Context = Entity

            @handler("booking_noted")
            def noted(self, event):
                leave(f"noted {event.entity_id}")

        write(guest, "before")
        with monkeypatch.context() as patch:
            patch.setattr(CommitBatch, "__call__", lambda self: self._due.clear())
            if spawned_by == "booking_created":
                booking = book(guest)
            else:
                change(booking, status="confirmed")
        write(guest, "after")
        change(booking, note="a")
        work()
        work()
        assert {"heard after", f"noted {booking.pk}"} <= set(effects())
        assert "heard before" not in effects()

    def test_events_before_the_spawning_one_are_not(self, clock, work):
        of_guest()
        guest = Person.objects.create()
        write(guest, "long ago")
        clock.tick(HOUR)
        booking = book(guest)
        clock.tick(HOUR)
        work()
        assert effects() == [f"created {booking.pk}"]

    def test_what_occurred_while_the_spawning_event_waited_for_a_worker_is_replayed(self, clock, work, monkeypatch):
        @agent("own", spawn_on="booking_created")
        class Own:
            Context = Entity

            @handler("stay_due")
            def due(self):
                leave("due")

        with monkeypatch.context() as patch:
            # The process dies after its commit: it has claimed the event and not performed it.
            patch.setattr(CommitBatch, "__call__", lambda self: claim_rows(Event, list(self._due), clock()))
            booking = book(starts_at=clock.tick(SECOND))
        work(clock.tick(SECOND))
        assert status_of(booking, "stay_due") == "processed"
        assert status_of(booking, "booking_created") == "pending"
        work(clock.tick(HOUR))
        assert effects() == ["due"]

    def test_a_replayed_event_that_is_notified_late_is_handled_once(self, work, monkeypatch):
        from django_ai.automation.events import occurrence

        of_guest()
        booking = book()
        monkeypatch.setattr(occurrence, "notify_subscribers", lambda news, clock: None)
        message = write(booking.guest, "never notified")  # the process died before it could notify
        monkeypatch.undo()
        work()
        assert effects() == [f"created {booking.pk}", "heard never notified"]
        event = event_of(message, "message_received")
        assert event.pending_notifications
        work(event.wake_at)
        event.refresh_from_db()
        assert not event.pending_notifications
        assert effects() == [f"created {booking.pk}", "heard never notified"]

    def test_an_event_notified_late_still_reaches_an_older_agent(self, work, monkeypatch):
        from django_ai.automation.events import occurrence

        of_guest()
        booking = book()
        work()
        monkeypatch.setattr(occurrence, "notify_subscribers", lambda news, clock: None)
        message = write(booking.guest, "never notified")
        monkeypatch.undo()
        work()
        assert "heard never notified" not in effects()
        work(event_of(message, "message_received").wake_at)
        assert "heard never notified" in effects()

    def test_an_event_notified_late_does_not_reach_a_younger_agent(self, clock, work, monkeypatch):
        from django_ai.automation.events import occurrence

        of_guest()
        guest = Person.objects.create()
        monkeypatch.setattr(occurrence, "notify_subscribers", lambda news, clock: None)
        message = write(guest, "before its time")
        monkeypatch.undo()
        monkeypatch.setattr(timezone, "now", clock)
        clock.tick(timedelta(seconds=1))
        booking = book(guest)
        work()
        work(event_of(message, "message_received").wake_at)
        assert not event_of(message, "message_received").pending_notifications
        assert effects() == [f"created {booking.pk}"]

    def test_a_machine_whose_clock_is_behind_loses_nothing(self, clock, work):
        of_guest()
        booking = book()
        clock.tick(-HOUR)
        write(booking.guest, "an hour before, by that clock")
        change(booking, note="so is this")
        clock.tick(HOUR)
        work()
        assert effects() == [f"created {booking.pk}", "heard an hour before, by that clock"]

    def test_a_machine_whose_clock_is_ahead_brings_back_nothing(self, clock, work):
        of_guest()
        guest = Person.objects.create()
        clock.tick(HOUR)
        write(guest, "an hour later, by that clock")
        clock.tick(-HOUR)
        booking = book(guest)
        work()
        assert effects() == [f"created {booking.pk}"]

    def test_an_agent_receives_later_milestones_of_an_event_that_is_older_than_it(self, clock, work):
        @agent("late", spawn_on="booking_noted")
        class Late:
            Context = Entity

            @handler("stay_due", offset=HOUR / 2)
            def before(self):
                leave("half an hour")

            @handler("stay_due", offset=HOUR)
            def first(self):
                leave("an hour")

            @handler("stay_due", offset=2 * HOUR)
            def second(self):
                leave("two hours")

        booking = book(starts_at=clock.now)
        clock.tick(HOUR / 2)
        work()
        clock.tick(HOUR / 4)
        change(booking, note="spawns it")
        for _ in range(2):
            clock.tick(HOUR)
            drain(models=[Event])  # no worker activates the agent
        assert the_agent().status == "pending"
        work()
        assert effects() == ["an hour", "two hours"]

    @pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["ahead", "behind"])
    def test_no_clock_decides_which_milestones_of_an_older_event_it_receives(self, clock, work, ahead):
        """An agent that a machine with a wrong clock spawns receives only the milestones that fire afterwards."""

        @agent("late", spawn_on="booking_noted")
        class Late:
            Context = Entity

            @handler("stay_due", offset=HOUR)
            def first(self):
                leave("an hour")

            @handler("stay_due", offset=2 * HOUR)
            def second(self):
                leave("two hours")

            @handler("stay_due", offset=3 * HOUR)
            def third(self):
                leave("three hours")

        booking = book(starts_at=clock.now)
        clock.tick(HOUR)
        work()  # the first milestone: there is no agent yet
        clock.tick(HOUR / 2 + ahead)
        change(booking, note="spawns it")
        clock.tick(-ahead)
        for _ in range(2):
            clock.tick(HOUR)
            drain(models=[Event])
        assert the_agent().status == "pending"
        work()
        assert effects() == ["two hours", "three hours"]

    def test_what_one_life_of_a_singleton_has_had_is_not_given_to_the_next(self, work, monkeypatch):
        of_guest(spawn_on=None)
        guest = Person.objects.create()
        first = AgentManager.spawn("of_guest", event=event_of(book(guest), "booking_created"))
        work()
        write(guest, "to the first")
        work()
        AgentManager.complete(first)
        write(guest, "to nobody")
        monkeypatch.setattr(manager, "lower_bound", lambda: 0)  # held back by a transaction in flight
        third = book(guest)
        AgentManager.spawn("of_guest", event=event_of(third, "booking_created"))
        work()
        assert sorted(effects()[1:]) == sorted(["heard to the first", f"created {third.pk}", "heard to nobody"])

    def test_deleted_entities_are_replayed_by_their_snapshots(self, work):
        @agent("archivist", spawn_on="booking_created", match={"booking_id": "{{ ctx.entity_id }}"})
        class Archivist:
            Context = Entity

            @handler("message_removed")
            def removed(self, event):
                leave(event.entity.text)

        booking = book()
        write(booking.guest, "to the bin", booking=booking).delete()
        write(booking.guest, "of no booking").delete()
        work()
        assert effects() == ["to the bin"]

    def test_a_worker_that_dies_before_it_has_looked_back_is_followed_by_one_that_does(self, work, monkeypatch):
        from django_ai.automation.agents import agent_session

        of_guest()
        booking = book()

        def die(*arguments):
            raise SystemExit

        monkeypatch.setattr(agent_session, "catch_up", die)
        with pytest.raises(SystemExit):
            work()
        monkeypatch.undo()
        run = the_agent()
        assert (run.status, run.started_at) == ("active", None)
        write(booking.guest, "meanwhile")
        work(run.wake_at)
        assert sorted(effects()) == [f"created {booking.pk}", "heard meanwhile"]


class TestOwnEntity:
    def test_an_event_that_occurs_while_it_is_looked_for_is_seen_once(self):
        """The lookback queries pending events first. An event that occurs before its second query is yielded once."""
        of_guest()
        two = [event_of(book(), "booking_confirmed") for _ in range(2)]
        moment = timezone.now()
        Event.objects.filter(pk=two[0].pk).update(occurred_at=moment, status="processed")
        found = []
        for event in lookback._with_entities(Event.objects.filter(pk__in=[each.pk for each in two])):
            found.append(event.pk)
            Event.objects.filter(pk=two[1].pk).update(occurred_at=moment - SECOND, status="processed")
        assert sorted(found) == [each.pk for each in two]

    def test_without_a_match_only_its_own_entity_is_heard(self, work):
        @agent("own", spawn_on="booking_created")
        class Own:
            Context = Entity

            @handler("booking_confirmed")
            def confirmed(self, ctx, event):
                leave(f"{ctx.entity_id} {event.entity_id}")

        one, two = book(), book()
        work()
        change(one, status="confirmed")
        change(two, status="confirmed")
        work()
        assert effects() == [f"{one.pk} {one.pk}", f"{two.pk} {two.pk}"]

    def test_an_event_that_its_entity_does_not_declare_is_heard_from_any(self, work):
        @agent("listener", spawn_on="booking_created")
        class Listener:
            Context = Entity

            @handler("message_received")
            def heard(self, event):
                leave(event.entity.text)

        book()
        work()
        write(Person.objects.create(), "of anybody")
        work()
        assert effects() == ["of anybody"]

    def test_an_empty_match_hears_any(self, work):
        @agent("listener", spawn_on="booking_created")
        class Listener:
            Context = Entity

            @handler("booking_confirmed", match={})
            def heard(self, event):
                leave(event.entity_id)

        book()
        work()
        other = book()
        AgentManager.cancel(agents()[1])
        change(other, status="confirmed")
        work()
        assert effects() == [str(other.pk)]

    def test_a_proxys_event_is_heard_of_its_own_entity_or_the_check_warns(self, work):
        """A proxy of the spawning model declares the event: only its own agent receives it, or check W304 warns."""
        from django_ai.automation.agents.checks import check_agents

        @agent("group", spawn_on="booking_created")
        class Group:
            Context = Entity

            @handler("group_arrived")
            def arrived(self, ctx):
                leave(ctx.entity_id)

        one, two = book(), book()
        work()
        change(GroupBooking.objects.get(pk=one.pk), note="here")
        work()
        warned = [each.id for each in check_agents(None)] == ["automation.W304"]
        assert effects() == [str(one.pk)] or (warned and effects() == [str(one.pk), str(two.pk)])


def test_a_worker_that_is_quicker_with_another_event_of_the_save_than_the_process_that_saved(clock, work, monkeypatch):
    """An event with a past date reaches the agent even if a worker performs it before the spawning event."""

    @agent("quick", spawn_on="reservation_confirmed")
    class Quick:
        Context = Entity

        @handler("checkin_due")
        def due(self):
            leave("due")

        @handler("checkin_due", offset=-HOUR)
        def before(self):
            leave("before")

    real = CommitBatch.__call__

    def slow(batch) -> None:
        drain()
        real(batch)

    monkeypatch.setattr(CommitBatch, "__call__", slow)
    Reservation.objects.create(status="confirmed", checkin_at=clock() - timedelta(seconds=1))
    monkeypatch.setattr(CommitBatch, "__call__", real)
    work()
    assert sorted(effects()) == ["before", "due"]
