"""``throttle=`` delays the start of runs, ``rate_limit=`` skips them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import Concurrency, RateLimit, Retry, Throttle, complete, engine, run_subflow, step, workflow
from django_ai.automation.queues.models import Limiter, Slot
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.limits import HOUR, MINUTE, SECOND, limited, slots, start, statuses
from tests.support.rows import effects, status

pytestmark = pytest.mark.django_db(transaction=True)

NOON = "2031-01-07T12:00+00:00"


def began(start) -> list[float]:
    """Return when each run began, in seconds after ``start``."""
    return [(run.started_at - start).total_seconds() for run in WorkflowRun.objects.order_by("pk") if run.started_at]


def test_starts_are_spread_evenly():
    limited(throttle=Throttle(4, per=SECOND))
    with time_machine(NOON) as machine:
        now = machine.now
        start(*map(str, range(9)))
        machine.advance(minutes=1)
        assert began(now) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert (statuses(), slots()) == (["completed"] * 9, {})


def test_a_burst_starts_at_once():
    limited(throttle=Throttle(1, per=MINUTE, burst=3))
    with time_machine(NOON) as machine:
        now = machine.now
        start(*"abcde")
        machine.advance(hours=1)
        assert began(now) == [0, 0, 0, 60, 120]


def test_each_value_of_the_key_has_its_own_pace():
    limited(throttle=Throttle(1, per=MINUTE, key="{{ ctx.group }}"))
    with time_machine(NOON) as machine:
        now = machine.now
        for key in ("x", "x", "y"):
            start(key, group=key)
        machine.advance(hours=1)
        assert began(now) == [0, 60, 0]


def test_only_the_start_is_throttled():
    limited(throttle=Throttle(1, per=HOUR))
    with time_machine(NOON) as machine:
        start("a", do="sleep")
        machine.advance(minutes=2)
        assert effects() == ["begin a", "end a"]
        start("b")
        machine.advance(minutes=57)
        assert effects() == ["begin a", "end a"]
        (reason,) = [run.waits_for(machine.now) for run in WorkflowRun.objects.unfinished()]
        assert reason == "a slot of the limit 'throttle' of workflow limited"
        machine.advance(minutes=1)
        assert effects() == ["begin a", "end a", "begin b", "end b"]


def test_a_retry_of_the_first_step_is_not_throttled():
    limited(throttle=Throttle(1, per=HOUR), default_retry=Retry(max_attempts=2, base_delay=MINUTE))
    with time_machine(NOON) as machine:
        start("a", do="fail")
        machine.advance(minutes=2)
        assert statuses() == ["failed"]


def test_a_cancelled_run_makes_no_hole():
    limited(throttle=Throttle(1, per=MINUTE))
    with time_machine(NOON) as machine:
        now = machine.now
        runs = start(*"abcd")
        machine.process()
        for run in runs[1:3]:
            engine.cancel(run)
        machine.advance(hours=1)
        assert began(now) == [0, 60]


def test_a_throttled_run_waits_for_no_slot_of_concurrency_meanwhile():
    limited(throttle=Throttle(1, per=MINUTE), concurrency=Concurrency(1))
    with time_machine(NOON) as machine:
        start("a", "b")
        machine.advance(seconds=30)
        assert slots() == {"queued": 1, "timer": 1}
        machine.advance(seconds=30)
        assert statuses() == ["completed", "completed"]


def test_a_rate_limit_skips_what_is_too_much_and_says_so():
    limited(rate_limit=RateLimit(2, per=HOUR))
    with time_machine(NOON) as machine:
        runs = start(*"abc")
        machine.process()
        assert effects() == ["begin a", "end a", "begin b", "end b"]
        skipped = runs[2]
        assert status(skipped) == "cancelled"
        assert skipped.error == (
            "Skipped: rate_limit=RateLimit(limit=2, per=datetime.timedelta(seconds=3600), key=None) is used up. "
            "The next one may start at 2031-01-07 14:00:00."
        )
        assert skipped.started_at is None


def test_a_rate_limit_holds_in_every_interval():
    limited(rate_limit=RateLimit(2, per=HOUR))
    with time_machine(NOON) as machine:
        for name in ("0", "40", "50", "60", "70", "100", "101"):
            machine.advance_to(machine.now.replace(hour=12, minute=0) + timedelta(minutes=int(name)))
            start(name)
            machine.process()
        assert [each.removeprefix("begin ") for each in effects() if "begin" in each] == ["0", "40", "60", "100"]


def test_each_value_of_the_key_has_its_own_rate():
    limited(rate_limit=RateLimit(1, per=HOUR, key="{{ ctx.group }}"))
    with time_machine(NOON) as machine:
        for key in ("x", "x", "y"):
            start(key, group=key)
        machine.process()
        assert statuses() == ["completed", "cancelled", "completed"]


def test_a_run_is_counted_once_however_long_it_waits_for_other_limits():
    limited(rate_limit=RateLimit(1, per=SECOND), throttle=Throttle(1, per=HOUR))
    with time_machine(NOON) as machine:
        start("a")
        machine.advance(seconds=5)
        start("b")
        machine.advance(seconds=5)
        start("c")
        machine.advance(seconds=5)
        start("d")
        machine.advance(hours=4)
        assert statuses() == ["completed"] * 4


def test_a_child_that_is_skipped_reports_its_end(work, clock):
    limited(rate_limit=RateLimit(1, per=HOUR))

    class Empty(BaseModel):
        ended: str = ""

    @workflow("parent")
    class Parent:
        Context = Empty

        @step(start=True)
        def begin(self):
            return run_subflow("limited", name="child", then=self.end)

        @step()
        def end(self):
            from django_ai.automation import get_wake

            return complete(ended=get_wake().payload["status"])

    start("a")
    work()
    parent = engine.start("parent")
    work()
    parent.refresh_from_db()
    assert (parent.status, parent.data) == ("completed", {"ended": "cancelled"})


def test_limiters_and_counted_starts_are_removed_when_they_are_over():
    from django_ai.automation.queues.limits.reconcile import prune_counted, prune_limiters
    from django_ai.automation.queues.periodic_tasks import TimeSlice

    limited(rate_limit=RateLimit(5, per=HOUR), throttle=Throttle(1, per=MINUTE))
    with time_machine(NOON) as machine:
        start("a", "b")
        machine.advance(minutes=30)
        prune_counted(TimeSlice(machine.now))
        prune_limiters(TimeSlice(machine.now))
        assert (Slot.objects.count(), Limiter.objects.count()) == (2, 2)
        machine.advance(minutes=31)
        assert prune_counted(TimeSlice(machine.now)).done == 2
        assert prune_limiters(TimeSlice(machine.now)).done == 2
