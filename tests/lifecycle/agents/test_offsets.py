"""Handlers before, at and after the date of an event, also when the date moves or the agent is spawned late."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import Retry, agent, handler
from django_ai.automation.events.models import Event
from django_ai.automation.queues.claim import claim
from tests.apps.front_desk.models import Booking
from tests.support.agents import Notes
from tests.support.front_desk import answers, book, the_agent
from tests.support.rows import change, effects, leave

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.mark.django_db(transaction=True)
class TestOffsets:
    @pytest.fixture
    def journey(self):
        @agent("journey", spawn_on="booking_created", match={"id": "{{ ctx.booking_id }}"}, singleton=True)
        class Journey:
            class Context(BaseModel):
                booking_id: int

            @classmethod
            def create_context(cls, event):
                return cls.Context(booking_id=event.entity.id)

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

            @handler("stay_due")
            def at(self):
                leave("at")

            @handler("stay_due", offset=HOUR)
            def after(self):
                leave("after")

        return Journey

    def times(self, clock, work, hours):
        """Let hours pass, and return for each effect the hours after which it appeared."""
        found = {}
        for hour in range(hours + 1):
            known = len(effects())
            work()
            for effect in effects()[known:]:
                found.setdefault(effect, []).append(hour)
            clock.tick(HOUR)
        return found

    def test_before_at_and_after(self, journey, clock, work):
        book(starts_at=clock.now + 10 * HOUR)
        assert self.times(clock, work, 14) == {"before": [7], "at": [10], "after": [11]}

    def test_without_a_match(self, clock, work):
        @agent("own", spawn_on="booking_created")
        class Own:
            Context = Notes

            @handler("stay_due", offset=-3 * HOUR)
            def before(self, event):
                leave("before")

        book(starts_at=clock.now + 10 * HOUR)
        assert self.times(clock, work, 12) == {"before": [7]}

    def test_to_the_second(self, journey, clock, work):
        book(starts_at=clock.now + 3 * HOUR + SECOND)
        work()
        assert effects() == []
        clock.tick(SECOND)
        work()
        assert effects() == ["before"]

    def late(self, match=None):
        """Declare an agent that ``booking_confirmed`` spawns, after the event with the date was armed."""

        @agent("late", spawn_on="booking_confirmed", match=match)
        class Late:
            Context = Notes

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

            @handler("stay_due")
            def at(self):
                leave("at")

    def test_spawned_after_the_event_was_armed(self, clock, work):
        self.late()
        booking = book(starts_at=clock.now + 10 * HOUR)
        work()
        clock.tick(5 * HOUR)
        change(booking, status="confirmed")
        assert self.times(clock, work, 6) == {"before": [2], "at": [5]}

    @pytest.mark.parametrize("match", [None, {"id": "{{ ctx.entity_id }}"}])
    def test_spawned_after_that_offsets_moment_has_passed_it_runs_at_once(self, clock, work, match):
        self.late(match)
        booking = book(starts_at=clock.now + 10 * HOUR)
        work()
        clock.tick(8 * HOUR)
        work()
        change(booking, status="confirmed")
        assert self.times(clock, work, 4) == {"before": [0], "at": [2]}
        assert answers() == [("before", "completed"), ("at", "completed")]

    def test_a_booking_of_the_last_minute(self, journey, clock, work):
        book(starts_at=clock.now + HOUR)
        assert self.times(clock, work, 4) == {"before": [0], "at": [1], "after": [2]}

    def test_a_booking_of_the_last_minute_and_no_worker_until_after_its_date(self, journey, clock, work):
        book(starts_at=clock.now + HOUR)
        clock.tick(3 * HOUR)  # the event is overdue before a worker activates the agent
        assert sorted(self.times(clock, work, 2)) == ["after", "at", "before"]

    @pytest.mark.parametrize("away", [{"status": "cancelled"}, {"starts_at": None}], ids=["condition", "date"])
    def test_what_fired_before_a_worker_got_to_the_agent_is_not_lost_when_the_event_is_disarmed(
        self, journey, clock, work, away
    ):
        booking = book(starts_at=clock.now + 2 * HOUR)
        (event,) = claim(Event, clock.tick(SECOND), 1)
        event.perform(clock)
        assert Event.objects.get(event_name="stay_due").fired == ["-3h"]
        change(booking, **away)
        assert self.times(clock, work, 4) == {"before": [0]}

    def test_spawned_after_the_date_it_is_too_late_for_what_is_over(self, clock, work):
        @agent("late", spawn_on="booking_confirmed")
        class Late:
            Context = Notes

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

            @handler("stay_due")
            def at(self):
                leave("at")

            @handler("stay_due", offset=2 * HOUR)
            def after(self):
                leave("after")

        booking = book(starts_at=clock.now + HOUR)
        work()
        clock.tick(HOUR)
        work()  # stay_due occurs
        clock.tick(HOUR)
        change(booking, status="confirmed")
        assert self.times(clock, work, 4) == {"after": [1]}

    def test_spawned_by_the_occurrence_it_is_too_late_for_earlier_offsets(self, clock, work):
        @agent("guide", spawn_on="stay_due")
        class Guide:
            Context = Notes

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

            @handler("stay_due")
            def at(self):
                leave("at")

            @handler("stay_due", offset=HOUR)
            def after(self):
                leave("after")

        book(starts_at=clock.now + 4 * HOUR)
        assert self.times(clock, work, 7) == {"at": [4], "after": [5]}

    def test_what_fell_due_between_its_event_and_its_activation_is_not_lost(self, clock, work):
        """Offsets that become due while ``create_context`` fails run when the agent becomes active."""

        @agent("slow", spawn_on="booking_confirmed", default_retry=Retry(3, base_delay=5 * HOUR, max_delay=5 * HOUR))
        class Slow:
            Context = Notes

            @classmethod
            def create_context(cls, event):
                if not event.entity.note:
                    raise ValueError("no note yet")
                return cls.Context(entity_id=event.entity_id)

            @handler("stay_due", offset=-HOUR)
            def before(self):
                leave("before")

            @handler("stay_due")
            def at(self):
                leave("at")

            @handler("stay_due", offset=HOUR)
            def after(self):
                leave("after")

        booking = book(starts_at=clock.now + 2 * HOUR, status="confirmed")
        assert self.times(clock, work, 4) == {}
        change(booking, note="now")
        work()
        assert sorted(effects()) == ["after", "at", "before"]

    def test_spawned_when_the_condition_of_the_event_is_false(self, clock, work):
        @agent("late", spawn_on="booking_noted")
        class Late:
            Context = Notes

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

        booking = book(starts_at=clock.now + 2 * HOUR)
        work()  # the offset is already due, and there is no agent yet
        change(booking, status="cancelled")
        change(booking, note="sorry")
        assert self.times(clock, work, 4) == {}
        assert the_agent().status == "active"

    def test_the_date_moves_away(self, journey, clock, work):
        booking = book(starts_at=clock.now + 5 * HOUR)
        work()
        change(booking, starts_at=clock.now + 10 * HOUR)
        assert self.times(clock, work, 12) == {"before": [7], "at": [10], "after": [11]}

    def test_the_date_comes_nearer(self, journey, clock, work):
        booking = book(starts_at=clock.now + 50 * HOUR)
        work()
        change(booking, starts_at=clock.now + 5 * HOUR)
        assert self.times(clock, work, 8) == {"before": [2], "at": [5], "after": [6]}

    def test_the_date_moves_after_a_part_has_run(self, journey, clock, work):
        booking = book(starts_at=clock.now + 2 * HOUR)
        work()
        assert effects() == ["before"]
        change(booking, starts_at=clock.now + 10 * HOUR)
        assert self.times(clock, work, 12) == {"at": [10], "after": [11]}  # a handler that has run does not run again

    def test_spawned_after_the_date_moved_away_it_runs_that_much_before_the_new_date(self, clock, work):
        """There was no agent when the offset before the old date became due."""

        @agent("late", spawn_on="booking_confirmed")
        class Late:
            Context = Notes

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

        booking = book(starts_at=clock.now + 2 * HOUR)
        work()
        change(booking, starts_at=clock.now + 20 * HOUR)
        work()
        change(booking, status="confirmed")
        assert self.times(clock, work, 20) == {"before": [17]}

    def test_the_date_is_taken_away(self, journey, clock, work):
        booking = book(starts_at=clock.now + 5 * HOUR)
        work()
        change(booking, starts_at=None)
        assert self.times(clock, work, 8) == {}

    def test_the_condition_of_the_event_turned_false(self, journey, clock, work):
        booking = book(starts_at=clock.now + 5 * HOUR)
        work()
        change(booking, status="cancelled")
        assert self.times(clock, work, 8) == {}

    def test_the_condition_turned_false_after_a_part_has_run(self, journey, clock, work):
        booking = book(starts_at=clock.now + 5 * HOUR)
        work()
        clock.tick(5 * HOUR)
        work()
        assert effects() == ["before", "at"] or effects() == ["at", "before"]
        change(booking, status="cancelled")
        clock.tick(HOUR)
        work()
        assert effects()[2:] == ["after"]

    def test_behind_djangos_back(self, journey, clock, work):
        booking = book(starts_at=clock.now + 50 * HOUR)
        work()
        Booking.objects.filter(pk=booking.pk).update(status="cancelled")
        assert self.times(clock, work, 52) == {}

    def test_the_deleted_entity(self, journey, clock, work):
        booking = book(starts_at=clock.now + 5 * HOUR)
        work()
        booking.delete()
        assert self.times(clock, work, 8) == {}
        assert the_agent().status == "active"

    def test_after_an_immediate_event(self, clock, work):
        @agent("later", spawn_on="booking_created")
        class Later:
            Context = Notes

            @handler("booking_created", offset=2 * HOUR)
            def after(self):
                leave("after")

        book()
        assert self.times(clock, work, 4) == {"after": [2]}

    def test_as_overdue_as_it_may_be(self, journey, clock, work):
        """If no worker runs for days, the overdue offsets fire afterwards, in their order."""
        book(starts_at=clock.now + 10 * HOUR)
        work()
        clock.tick(timedelta(days=20))
        work()
        assert effects() == ["before", "at", "after"]

    def test_in_calendar_units(self, clock, work):
        from dateutil.relativedelta import relativedelta

        @agent("monthly", spawn_on="booking_created")
        class Monthly:
            Context = Notes

            @handler("stay_due", offset=relativedelta(months=-1))
            def before(self):
                leave("before")

        book(starts_at=clock.now.replace(month=3))
        clock.now = clock.now.replace(month=2) - SECOND
        work()
        assert effects() == []
        clock.tick(SECOND)
        work()
        assert effects() == ["before"]

    def test_an_event_that_may_come_again(self, clock, work, declare):
        from django_ai.automation import EventDefinition

        declare(
            Booking, EventDefinition("booking_created"), EventDefinition("stay_due", date_field="starts_at", rearm=True)
        )

        @agent("again", spawn_on="booking_created")
        class Again:
            Context = Notes

            @handler("stay_due", offset=-3 * HOUR)
            def before(self):
                leave("before")

            @handler("stay_due")
            def at(self):
                leave("at")

        booking = book(starts_at=clock.now + 4 * HOUR)
        for _ in range(5):
            work()
            clock.tick(HOUR)
        assert effects() == ["before", "at"]
        change(booking, starts_at=clock.now + 4 * HOUR)
        for _ in range(5):
            work()
            clock.tick(HOUR)
        assert effects() == ["before", "at", "before", "at"]
