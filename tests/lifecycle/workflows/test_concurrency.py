"""``concurrency=`` of workflows: how many runs execute at the same time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import Concurrency, Retry, complete, engine, event_workflow, goto, run_subflow, step, workflow
from django_ai.automation.conf import conf
from django_ai.automation.queues.claim import claim_rows
from django_ai.automation.queues.models import Limiter, Slot
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.limits import MINUTE, SECOND, Job, limited, perform, slots, start, statuses
from tests.support.race import elsewhere
from tests.support.rows import change, effects, leave, status, the_run

pytestmark = pytest.mark.django_db(transaction=True)

BY_KEY = Concurrency(1, key="{{ ctx.group }}")


@pytest.fixture
def one_step_at_a_time(settings):
    """Let a worker release a run after each step, so that others could execute between its steps."""
    settings.AUTOMATION = {**settings.AUTOMATION, "DRAIN_BUDGET": timedelta(microseconds=1)}


def reasons(clock) -> list[str]:
    return [each.waits_for for each in explain(clock.now, ["workflow run"])]


def test_without_a_limit_steps_of_several_runs_alternate(clock, work, one_step_at_a_time):
    limited()
    start("a", "b")
    work()
    assert effects() == ["begin a", "begin b", "end a", "end b"]
    assert (Limiter.objects.count(), Slot.objects.count()) == (0, 0)


def test_the_next_run_begins_when_one_has_ended(clock, work, one_step_at_a_time):
    limited(concurrency=Concurrency(1))
    start("a", "b", "c")
    work()
    assert effects() == ["begin a", "end a", "begin b", "end b", "begin c", "end c"]
    assert statuses() == ["completed"] * 3
    assert slots() == {}


def test_as_many_execute_as_the_limit_says(clock, work, one_step_at_a_time):
    limited(concurrency=Concurrency(2))
    start("a", "b", "c")
    work()
    assert effects() == ["begin a", "begin b", "end a", "end b", "begin c", "end c"]


def test_each_value_of_the_key_has_its_own_limit(clock, work, one_step_at_a_time):
    limited(concurrency=BY_KEY)
    start("a1", "a2", group="a")
    start("b1", group="b")
    work()
    assert effects() == ["begin a1", "begin b1", "end a1", "end b1", "begin a2", "end a2"]
    assert sorted(Limiter.objects.values_list("name", "limit", "value")) == [
        ("limited", "concurrency {{ ctx.group }}", "a"),
        ("limited", "concurrency {{ ctx.group }}", "b"),
    ]


def test_a_total_serves_the_keys_in_turn(clock, work, one_step_at_a_time):
    limited(concurrency=[Concurrency(1), BY_KEY])
    start("a1", "a2", "a3", group="a")
    start("b1", "b2", "b3", group="b")
    work()
    assert [each.removeprefix("begin ") for each in effects() if each.startswith("begin")] == [
        "a1", "b1", "a2", "b2", "a3", "b3",
    ]  # fmt: skip


def test_a_queued_run_costs_no_claim_and_says_what_it_waits_for(clock, work, one_step_at_a_time):
    limited(concurrency=BY_KEY)
    first, second = start("a", "b", group="x")
    perform(first, clock)
    perform(second, clock)
    queued = the_run(pk=second.pk)
    assert (queued.wake_at, queued.lease, queued.status) == (None, None, "waiting")
    assert "a slot of the limit 'concurrency' of workflow limited for 'x'" in reasons(clock)
    assert queued.waits_for(clock.now) == "a slot of the limit 'concurrency' of workflow limited for 'x'"
    assert slots() == {"held": 1, "queued": 1}


@pytest.mark.parametrize("do", ["sleep", "wait"])
def test_a_run_that_sleeps_or_waits_holds_no_slot(clock, work, do):
    limited(concurrency=Concurrency(1))
    start("a", "b", do=do)
    work()
    assert effects() == ["begin a", "begin b"]
    assert slots() == {}
    engine.signal("go")
    clock.tick(MINUTE)
    work()
    assert effects() == ["begin a", "begin b", "end a", "end b"]


def test_a_run_in_the_backoff_of_a_retry_holds_no_slot(clock, work):
    limited(concurrency=Concurrency(1), default_retry=Retry(max_attempts=2, base_delay=MINUTE))
    start("a", do="fail")
    start("b")
    work()
    assert effects() == ["begin b", "end b"]
    assert (statuses(), slots()) == (["waiting", "completed"], {})
    clock.tick(MINUTE)
    work()
    assert (statuses(), slots()) == (["failed", "completed"], {})


def test_a_run_whose_worker_died_keeps_its_slot_and_continues_after_the_lease(clock, work, one_step_at_a_time):
    limited(concurrency=Concurrency(1))
    first, _ = start("a", "b")
    perform(first, clock)
    claim_rows(WorkflowRun, [first.pk], clock.now)  # and dies
    work()
    assert effects() == ["begin a"]
    clock.tick(conf().LEASE + SECOND)
    work()
    assert effects() == ["begin a", "end a", "begin b", "end b"]
    assert slots() == {}


def hold_and_queue(clock) -> tuple[WorkflowRun, WorkflowRun]:
    """Return a run that holds the only slot between two steps, and one that waits for it."""
    first, second = start("a", "b")
    perform(first, clock)
    perform(second, clock)
    assert slots() == {"held": 1, "queued": 1}
    return first, second


def test_cancelling_a_run_admits_the_next(clock, work, one_step_at_a_time):
    limited(concurrency=Concurrency(1))
    first, second = hold_and_queue(clock)
    engine.cancel(first)
    work()
    assert (status(first), status(second)) == ("cancelled", "completed")
    assert effects() == ["begin a", "begin b", "end b"]


def test_a_cancelled_run_that_executes_gives_its_slot_away_after_its_lease(clock, work, one_step_at_a_time):
    """Its code still runs: two would execute at the same time."""
    limited(concurrency=Concurrency(1))
    first, second = hold_and_queue(clock)
    claim_rows(WorkflowRun, [first.pk], clock.now)
    engine.cancel(first)
    work()
    assert effects() == ["begin a"]
    clock.tick(conf().LEASE)
    work()
    assert (status(second), effects()) == ("completed", ["begin a", "begin b", "end b"])


def test_the_worker_of_a_cancelled_run_gives_its_slot_away_as_soon_as_its_step_has_ended(clock, work):
    @workflow("cancels", concurrency=Concurrency(1))
    class Cancels:
        Context = Job

        @step(start=True, atomic=False)
        def begin(self):
            leave(f"begin {self.context.name}")
            if self.context.name == "a":
                elsewhere(lambda: engine.cancel(WorkflowRun.objects.get(data__name="a")))
            return complete()

    start("a", "b", name="cancels")
    work()
    assert (statuses(), slots()) == (["cancelled", "completed"], {})
    assert effects() == ["begin a", "begin b"]


def test_a_queued_run_that_is_cancelled_leaves_the_queue(clock, work, one_step_at_a_time):
    limited(concurrency=Concurrency(1))
    first, second = hold_and_queue(clock)
    (third,) = start("c")
    engine.cancel(second)
    work()
    assert (status(first), status(second), status(third)) == ("completed", "cancelled", "completed")
    assert slots() == {}


def test_a_parked_run_holds_no_slot_and_asks_again_when_it_is_resumed(clock, work, one_step_at_a_time):
    limited(concurrency=Concurrency(1))
    first, second = hold_and_queue(clock)
    (row,) = claim_rows(WorkflowRun, [first.pk], clock.now)
    row.park("an operator must look", lambda: clock.now)
    work()
    assert (status(first), status(second), slots()) == ("parked", "completed", {})
    engine.resume(first)
    work()
    assert (status(first), slots()) == ("completed", {})


class Stay(BaseModel):
    status: str
    note: str = ""


def test_an_events_run_makes_its_context_once_before_it_asks(clock, work, one_step_at_a_time):
    made = []

    @event_workflow("reservation_confirmed", name="limited", concurrency=Concurrency(1, key="{{ ctx.status }}"))
    class Limited:
        Context = Stay

        @classmethod
        def create_context(cls, event):
            made.append(event.entity.pk)
            return cls.Context(status=event.entity.status, note=event.entity.note)

        @step(start=True)
        def begin(self):
            leave(f"begin {self.context.note}")
            return goto(self.end)

        @step()
        def end(self):
            leave(f"end {self.context.note}")
            return complete()

    first = Reservation.objects.create(status="confirmed", note="a")
    second = Reservation.objects.create(status="confirmed", note="b")
    for run in WorkflowRun.objects.order_by("pk"):
        perform(run, clock)
    queued = the_run(event__entity_id=str(second.pk))
    assert (queued.wake_at, queued.started_at, queued.data["note"]) == (None, None, "b")
    change(second, note="c")
    work()
    assert effects() == ["begin a", "end a", "begin b", "end b"]
    assert made == [first.pk, second.pk]


def test_a_context_that_cannot_be_made_is_a_failed_attempt_of_the_first_step(clock, work):
    tries = []

    @event_workflow(
        "reservation_confirmed",
        name="limited",
        concurrency=Concurrency(1, key="{{ ctx.status }}"),
        default_retry=Retry(max_attempts=2, base_delay=MINUTE),
    )
    class Limited:
        Context = Stay

        @classmethod
        def create_context(cls, event):
            tries.append(1)
            raise RuntimeError("no context")

        @step(start=True)
        def begin(self):
            return complete()

    Reservation.objects.create(status="confirmed")
    work()
    run = the_run()
    assert (run.status, run.attempt, slots()) == ("waiting", 1, {})
    clock.tick(MINUTE)
    work()
    run.refresh_from_db()
    assert (run.status, len(tries), slots()) == ("failed", 2, {})
    assert run.error.splitlines()[-1] == "RuntimeError: no context"
    assert list(StepExecution.objects.values_list("step", "outcome")) == [("begin", "error"), ("begin", "error")]


def test_a_key_that_cannot_be_read_fails_the_run(clock, work):
    class Nested(BaseModel):
        address: dict[str, str] = {}

    @workflow("nested", concurrency=Concurrency(1, key="{{ ctx.address.town }}"))
    class Limited:
        Context = Nested

        @step(start=True)
        def begin(self):
            return complete()

    run = engine.start("nested")
    work()
    assert status(run) == "failed"
    assert "{{ ctx.address.town }}: dict has no field 'town'." in run.error


def test_a_parent_holds_no_slot_while_its_child_runs(clock, work):
    @workflow("family", concurrency=Concurrency(1))
    class Family:
        Context = Job

        @step(start=True)
        def begin(self):
            leave(f"begin {self.context.name}")
            if self.context.name == "parent":
                return run_subflow("family", name="child", then=self.end)
            return complete()

        @step()
        def end(self):
            leave("end parent")
            return complete()

    start("parent", name="family")
    work()
    assert effects() == ["begin parent", "begin child", "end parent"]


def planned() -> None:
    @event_workflow(
        "checkin_due", offset=timedelta(hours=-1), name="limited", concurrency=Concurrency(1, key="{{ ctx.status }}")
    )
    class Limited:
        Context = Stay

        @classmethod
        def create_context(cls, event):
            return cls.Context(status=event.entity.status, note=event.entity.note)

        @step(start=True)
        def begin(self):
            leave(f"begin {self.context.note}")
            return goto(self.end)

        @step()
        def end(self):
            leave(f"end {self.context.note}")
            return complete()


def hold_and_plan(clock) -> tuple[WorkflowRun, WorkflowRun]:
    """Return a planned run that holds the only slot, and one that waits for it."""
    planned()
    due = clock.now + timedelta(hours=2)
    for name in ("a", "b"):
        Reservation.objects.create(status="confirmed", note=name, checkin_at=due)
    first, second = WorkflowRun.objects.order_by("pk")
    clock.tick(timedelta(hours=1))
    for run in (first, second):
        perform(run, clock)
    assert slots() == {"held": 1, "queued": 1}
    return first, second


def test_a_planned_run_stays_in_the_queue_when_its_entity_is_saved(clock, work, one_step_at_a_time):
    _, second = hold_and_plan(clock)
    change(Reservation.objects.get(note="b"), docs=True)
    second.refresh_from_db()
    assert (second.wake_at, slots()) == (None, {"held": 1, "queued": 1})
    work()
    assert effects() == ["begin a", "end a", "begin b", "end b"]


def test_a_planned_run_in_the_queue_moves_with_its_date(clock, work, one_step_at_a_time):
    hold_and_plan(clock)
    change(Reservation.objects.get(note="b"), checkin_at=clock.now + timedelta(days=1), note="c")
    work()
    assert (effects(), slots()) == (["begin a", "end a"], {})
    clock.tick(timedelta(days=1))
    work()
    assert effects() == ["begin a", "end a", "begin c", "end c"], "its Context is that of the new date"


def test_a_planned_run_in_the_queue_is_withdrawn_with_its_condition(clock, work, one_step_at_a_time):
    first, second = hold_and_plan(clock)
    change(Reservation.objects.get(note="b"), status="cancelled")
    assert status(second) == "withdrawn"
    work()
    assert (status(first), slots()) == ("completed", {})
    change(Reservation.objects.get(note="b"), status="confirmed", note="d")
    work()
    assert effects() == ["begin a", "end a", "begin d", "end d"]
