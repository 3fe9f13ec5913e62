"""How handlers that raise are retried, and which of their effects are kept."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, Retry, agent, handler, idempotency_key
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.exceptions import NotResumableError
from tests.apps.front_desk.models import Message
from tests.support.agents import Notes, answering
from tests.support.fault_injection import database_failure
from tests.support.front_desk import answers, book, the_agent, the_answer, write
from tests.support.rows import change, effects, event_of, leave

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.mark.django_db(transaction=True)
class TestRetries:
    @pytest.mark.exact_times
    def test_exponential_backoff_at_exact_times(self, clock, work):
        """The guide's example: three attempts; the delays between them are 30 and 60 seconds."""
        tried = []

        def answer(self):
            tried.append(clock.now)
            raise ValueError("declined")

        answering(answer, retry=Retry(max_attempts=3, base_delay=timedelta(seconds=30)))
        book()
        begin = clock.now
        for _ in range(200):
            work()
            clock.tick(SECOND)
        assert [at - begin for at in tried] == [0 * SECOND, 30 * SECOND, 90 * SECOND]
        execution = the_answer()
        assert (execution.status, execution.attempt) == ("failed", 3)
        assert execution.error.rstrip().endswith("ValueError: declined")
        assert execution.finished_at == begin + 90 * SECOND

    @pytest.mark.exact_times
    def test_the_agents_default_retry_and_a_handlers_own(self, clock, work):
        @agent(
            "retrying", spawn_on="booking_created", default_retry=Retry(max_attempts=2, base_delay=HOUR, max_delay=HOUR)
        )
        class Retrying:
            Context = Notes

            @handler("booking_created")
            def by_default(self):
                leave("never kept")
                raise ValueError

            @handler("booking_created", retry=Retry(max_attempts=1))
            def of_its_own(self):
                raise ValueError

        book()
        work()
        assert answers() == [("by_default", "pending"), ("of_its_own", "failed")]
        assert the_answer(handler="by_default").due_at == clock.now + HOUR
        assert the_agent().wake_at == clock.now + HOUR
        clock.tick(HOUR)
        work()
        assert answers() == [("by_default", "failed"), ("of_its_own", "failed")]

    def test_without_any_it_is_three_tries(self, clock, work):
        def answer(self):
            raise ValueError

        answering(answer)
        book()
        for _ in range(5):
            work()
            clock.tick(HOUR)
        assert the_answer().attempt == 3

    @pytest.mark.exact_times
    def test_others_are_not_held_up_by_a_retry_that_is_put_off(self, clock, work):
        @agent("patient", spawn_on="booking_created")
        class Patient:
            Context = Notes

            @handler("booking_created", retry=Retry(2, base_delay=HOUR, max_delay=HOUR))
            def fragile(self, ctx):
                ctx.count += 1
                if ctx.count == 1:
                    raise ValueError
                leave("at last")

            @handler("booking_noted")
            def noted(self, event):
                leave(event.entity.note)

        booking = book()
        work()
        change(booking, note="a")
        work()
        clock.tick(HOUR / 2)
        change(booking, note="b")
        work()
        assert effects() == ["a", "b"]
        assert the_agent().wake_at == clock.now + HOUR / 2
        clock.tick(HOUR / 2)
        work()
        assert effects() == ["a", "b", "at last"]
        assert the_agent().wake_at is None

    def test_failing_for_good_the_agent_lives_on_and_the_execution_is_resumed(self, clock, work):
        broken = [True]

        def answer(self):
            if broken:
                raise ValueError("broken")
            leave("ran")

        answering(answer, "booking_noted", retry=Retry(max_attempts=1))
        booking = book()
        work()
        change(booking, note="a")
        work()
        assert the_agent().status == "active"
        execution = the_answer()
        assert (execution.status, execution.attempt) == ("failed", 1)
        broken.clear()
        change(booking, note="b")
        work()
        assert effects() == ["ran"]  # the agent still handles new events
        clock.tick(HOUR)
        execution.resume()
        assert (execution.status, execution.attempt, execution.error) == ("pending", 0, "")
        assert (execution.due_at, execution.finished_at) == (clock.now, None)
        work()
        assert effects() == ["ran", "ran"]
        execution.refresh_from_db()
        assert (execution.status, execution.attempt) == ("completed", 1)

    def test_only_what_has_failed_or_is_parked_is_resumed_and_only_of_the_living(self, work):
        def answer(self, event):
            if event.entity.note:
                raise ValueError

        answering(answer, retry=Retry(max_attempts=1))
        book()
        work()
        with pytest.raises(NotResumableError, match="is completed"):
            the_answer().resume()
        booking = book(note="raise")
        work()
        failed = the_answer(status="failed")
        AgentManager.complete(the_agent(entity_id=str(booking.pk)))
        with pytest.raises(NotResumableError, match="of an unfinished agent"):
            failed.resume()

    def test_wrong_use_of_the_package_is_not_tried_again(self, work):
        def answer(self):
            AgentManager.spawn("nobody")

        answering(answer)
        book()
        work()
        execution = the_answer()
        assert (execution.status, execution.attempt) == ("failed", 1)
        assert execution.error.startswith("UnknownAgentError: No agent is called 'nobody'")

    def test_a_broken_query_spoils_nothing_else(self, work):
        from django.db import connection

        @agent("broken", spawn_on="booking_created")
        class Broken:
            Context = Notes

            @handler("booking_created", retry=Retry(max_attempts=1))
            def first(self, ctx):
                ctx.count += 1
                with connection.cursor() as cursor:
                    cursor.execute("SELECT nothing FROM nowhere")

            @handler("booking_created")
            def second(self):
                leave("second")

        book()
        work()
        assert answers() == [("first", "failed"), ("second", "completed")]
        assert the_agent().data["count"] == 1


@pytest.mark.django_db(transaction=True)
class TestEffects:
    @pytest.mark.slow
    def test_the_idempotency_key_is_stable_over_tries_and_differs_between_executions(self, clock, work):
        keys = {}

        def answer(self, ctx, event):
            keys.setdefault((ctx.entity_id, event.pk), []).append(idempotency_key())
            raise ValueError

        answering(answer, "booking_noted", retry=Retry(max_attempts=3))
        for booking in (book(), book()):
            change(booking, note="a")
            change(booking, note="b")
        for _ in range(4):
            work()
            clock.tick(HOUR)
        assert len(keys) == 4
        assert all(len(tries) == 3 and len(set(tries)) == 1 for tries in keys.values())
        assert len({tries[0] for tries in keys.values()}) == 4
        assert {tries[0] for tries in keys.values()} == {
            each.idempotency_key for each in HandlerExecution.objects.all()
        }

    def test_the_idempotency_key_is_the_same_after_a_resume(self, work):
        keys = []

        def answer(self):
            keys.append(idempotency_key())
            raise ValueError

        answering(answer, retry=Retry(max_attempts=1))
        book()
        work()
        the_answer().resume()
        work()
        assert len(keys) == 2
        assert len(set(keys)) == 1

    def test_what_it_saves_carries_its_cause(self, work):
        def answer(self, event):
            write(event.entity.guest, "dear guest")

        answering(answer)
        booking = book()
        work()
        caused = event_of(Message.objects.get(), "message_received")
        assert caused.caused_by == f"agent:{the_agent().pk}:answer"
        assert caused.depth == event_of(booking, "booking_created").depth + 1

    def test_not_atomic_it_keeps_what_it_wrote_before_it_raised(self, clock, work):
        from django.db import connection

        def answer(self, ctx):
            assert not connection.in_atomic_block
            ctx.count += 1
            leave(f"try {ctx.count}")
            if ctx.count < 2:
                raise ValueError

        answering(answer, atomic=False)
        book()
        work()
        assert effects() == ["try 1"]
        clock.tick(HOUR)
        work()
        assert effects() == ["try 1", "try 2"]
        assert (the_agent().data["count"], the_answer().status, the_answer().attempt) == (2, "completed", 2)

    def test_atomic_it_runs_in_a_transaction(self, work):
        from django.db import connection

        answering(lambda self: leave(connection.in_atomic_block))
        book()
        work()
        assert effects() == ["True"]

    def test_a_worker_that_is_told_to_stop_gives_the_agent_back_and_it_costs_no_try(self, work):
        stopped = []

        def answer(self, ctx):
            ctx.count += 1
            leave("ran")
            if not stopped:
                stopped.append(True)
                raise SystemExit

        answering(answer)
        book()
        with pytest.raises(SystemExit):
            work()
        assert (the_agent().lease, the_answer().status, the_answer().attempt) == (None, "pending", 0)
        work()
        assert effects() == ["ran"]
        assert (the_agent().data["count"], the_answer().attempt) == (1, 1)

    def test_an_execution_that_somebody_else_has_ended_meanwhile_is_not_committed(self, work):
        def answer(self, ctx, event):
            ctx.count += 1
            HandlerExecution.objects.filter(event=event).update(status="cancelled", error="by hand")

        answering(answer, atomic=False)
        book()
        work()
        assert (the_answer().status, the_answer().error, the_answer().attempt) == ("cancelled", "by hand", 0)
        assert (the_agent().data["count"], the_agent().lease, the_agent().status) == (0, None, "active")

    @pytest.mark.exact_times
    def test_a_database_failure_costs_no_try(self, clock, work):
        tried = []

        def answer(self, ctx):
            tried.append(clock.now)
            ctx.count += 1
            if len(tried) == 1 or (clock.now == tried[0] and len(tried) < 20):
                raise database_failure()

        answering(answer)
        book()
        begin = clock.now
        work()
        assert tried == [begin]  # the retry is delayed, as for a step
        assert (the_answer().status, the_answer().attempt, the_agent().lease) == ("pending", 0, None)
        clock.tick(2 * SECOND)
        work()
        assert (the_answer().status, the_answer().attempt, the_agent().data["count"]) == ("completed", 1, 1)

    def test_a_deleted_entity_leaves_its_agent_and_the_deletion_is_heard_with_the_snapshot(self, work):
        @agent("survivor", spawn_on="booking_created", match={"id": "{{ ctx.booking_id }}"})
        class Survivor:
            class Context(BaseModel):
                booking_id: int

            @classmethod
            def create_context(cls, event):
                return cls.Context(booking_id=event.entity.id)

            @handler("booking_deleted")
            def deleted(self, ctx, event):
                leave(f"{ctx.booking_id} {event.entity.note}")

            @handler("booking_deleted", match={"guest__name": "Ada", "status__in": ["new"]})
            def of_ada(self, event):
                leave(f"of {event.entity.guest.name}")

            @handler("stay_due")
            def due(self):
                leave("never")

        booking, other = book(note="last words"), book()
        work()
        pk = booking.pk
        booking.delete()
        work()
        assert the_agent(entity_id=str(pk)).status == "active"
        assert sorted(effects()) == sorted([f"{pk} last words", "of Ada", "of Ada"])
        other.delete()
        work()
        assert AgentRun.objects.active().count() == 2

    def test_a_deletion_is_heard_by_the_agent_of_the_entity_without_any_match(self, work):
        answering(lambda self, event: leave(event.entity.note), "booking_deleted")
        booking = book(note="last words")
        work()
        booking.delete()
        work()
        assert effects() == ["last words"]
