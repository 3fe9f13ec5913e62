"""Limits and several workers: what is admitted at the same time, and who waits for whom."""

from __future__ import annotations

import threading
import time

import pytest
from django.db import transaction

from django_ai.automation import Concurrency, RateLimit, Singleton, Throttle, complete, engine, goto, step, workflow
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Slot
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.limits import HOUR, SECOND, Job, limited, perform, slots, start, statuses
from tests.support.race import elsewhere, row_locks, together
from tests.support.rows import effects, status

pytestmark = pytest.mark.django_db(transaction=True)


class Counter:
    """How many steps are executed now, and were at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005)

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.now -= 1


def counted(**options: object) -> Counter:
    counter = Counter()

    @workflow("counted", **options)
    class Counted:
        Context = Job

        @step(start=True, atomic=False)
        def first(self):
            with counter:
                return goto(self.second)

        @step(atomic=False)
        def second(self):
            with counter:
                return complete()

    return counter


def drain_to_the_end() -> None:
    deadline = time.monotonic() + 60
    while WorkflowRun.objects.unfinished().exists():
        assert time.monotonic() < deadline
        drain()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2])
def test_several_workers_execute_no_more_than_the_limit_says(limit):
    counter = counted(concurrency=Concurrency(limit))
    start(*map(str, range(30)), name="counted")
    assert together(*[drain_to_the_end] * 4) == []
    # On a busy machine the threads may never meet; that as many execute as may is shown without threads.
    assert counter.most <= limit
    assert statuses() == ["completed"] * 30
    drain()
    assert slots() == {}


@pytest.mark.slow
def test_several_workers_execute_one_singleton_at_a_time():
    counter = counted(singleton=Singleton(on_conflict="queue"))
    start(*map(str, range(20)), name="counted")
    assert together(*[drain_to_the_end] * 4) == []
    assert (counter.most, statuses()) == (1, ["completed"] * 20)


def test_several_workers_count_starts_together():
    limited(rate_limit=RateLimit(7, per=HOUR))
    start(*map(str, range(30)))
    assert together(*[drain_to_the_end] * 4) == []
    assert sorted(statuses()) == ["cancelled"] * 23 + ["completed"] * 7


@pytest.mark.slow
def test_several_workers_start_at_one_pace():
    limited(throttle=Throttle(1, per=HOUR, burst=5))
    start(*map(str, range(20)))
    assert together(*[drain] * 4) == []
    assert statuses().count("completed") == 5


def hold_and_queue(clock) -> tuple[WorkflowRun, WorkflowRun]:
    """Return a run that holds the only singleton, and one that waits for it."""
    limited(singleton=Singleton(on_conflict="queue"))
    first, second = start("a", "b", do="sleep")
    perform(first, clock)
    perform(second, clock)
    assert slots() == {"held": 1, "queued": 1}
    return first, second


@row_locks
def test_a_transaction_that_cancels_a_run_keeps_no_worker_waiting(clock):
    """Another run of the same limit joins the queue meanwhile, and others look at it."""
    first, second = hold_and_queue(clock)
    with transaction.atomic():
        engine.cancel(first)
        elsewhere(lambda: start("c"))
        elsewhere(drain)
        assert slots() == {"released": 1, "queued": 2}
    drain()
    assert effects() == ["begin a", "begin b"]
    assert status(second) == "waiting"


@row_locks
def test_a_queued_run_that_a_transaction_has_locked_is_admitted_later(clock):
    """That transaction cancels the run, and is rolled back."""
    first, second = hold_and_queue(clock)
    try:
        with transaction.atomic():
            engine.cancel(second)
            elsewhere(lambda: engine.cancel(first))
            elsewhere(drain)
            raise RuntimeError
    except RuntimeError:
        pass
    assert slots() == {"queued": 1, "timer": 1}
    drain()
    assert effects() == ["begin a"], "it is looked at again after a second"
    clock.tick(SECOND)
    drain()
    assert effects() == ["begin a", "begin b"]
    assert Slot.objects.filter(state="timer").count() == 0


@row_locks
def test_a_queued_run_that_is_cancelled_meanwhile_is_left_out(clock):
    first, second = hold_and_queue(clock)
    (third,) = start("c", do="sleep")
    perform(third, clock)
    with transaction.atomic():
        engine.cancel(second)
        elsewhere(lambda: engine.cancel(first))
        elsewhere(drain)
    drain()
    clock.tick(SECOND)
    drain()
    assert effects() == ["begin a", "begin c"]
    assert (status(second), slots()) == ("cancelled", {"held": 1})
