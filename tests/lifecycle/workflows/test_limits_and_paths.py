"""Limits, pauses and paths: what a run holds while it undoes its work, and what it does not wait for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from django_ai.automation import (
    Concurrency,
    RateLimit,
    Retry,
    Singleton,
    Throttle,
    complete,
    engine,
    event_workflow,
    fail,
    get_run,
    on_cancel,
    on_fail,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Slot
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.limits import HOUR, Job, perform, slots, start, statuses
from tests.support.race import elsewhere
from tests.support.rows import effects, history, leave, status, the_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

DAY = timedelta(days=1)


def limited(undo: str = "sleep", **options: Any) -> None:
    """Declare a workflow with limits whose paths do what ``undo`` says: an hour of sleep, a failure, or nothing."""

    @workflow("limited", default_retry=Retry(max_attempts=1), **options)
    class Limited:
        Context = Job

        @step(start=True)
        def begin(self):
            leave(f"begin {self.context.name}")
            match self.context.do:
                case "fail":
                    return fail("no")
                case "wait":
                    return wait("go")
            return complete()

        @on_cancel
        def cancelled(self):
            return self._undo()

        @on_fail
        def failed(self):
            return self._undo()

        @step()
        def undone(self):
            leave(f"undone {self.context.name}")
            return complete()

        def _undo(self):
            leave(f"undo {self.context.name}")
            if undo == "fail":
                raise RuntimeError("not undone")
            return sleep(HOUR, then=self.undone) if undo == "sleep" else complete()


def held(run: WorkflowRun) -> list[str]:
    """Return which limits have a slot for the run, and in which state."""
    found = Slot.objects.filter(row_pk=run.pk).exclude(state="released").order_by("pk")
    return [f"{slot.limiter.limit} {slot.state}" for slot in found]


# -- singleton ---------------------------------------------------------------------------------------------------------


def test_a_run_is_the_only_one_until_its_path_has_ended(clock, work):
    limited(singleton=Singleton())
    (first,) = start("a", do="fail")
    work()
    assert (status(first), held(first)) == ("waiting", ["singleton held"])
    (second,) = start("b")
    work()
    assert status(second) == "cancelled"
    assert "has not ended" in second.error
    clock.tick(HOUR)
    work()
    assert (status(first), slots()) == ("failed", {})
    (third,) = start("c")
    work()
    assert status(third) == "completed"
    assert effects() == ["begin a", "undo a", "undone a", "begin c"]


@pytest.mark.parametrize("on_conflict", ["queue", "cancel_running"])
def test_the_next_run_waits_for_the_path_of_the_other(clock, work, on_conflict):
    limited(singleton=Singleton(on_conflict=on_conflict))
    (first,) = start("a", do="wait")
    work()
    if on_conflict == "queue":
        engine.cancel(first)
    (second,) = start("b")
    work()
    assert (status(first), status(second), second.wake_at) == ("waiting", "waiting", None)
    assert first.path == "@on_cancel"
    assert second.waits_for(clock.now) == "a slot of the limit 'singleton' of workflow limited"
    clock.tick(HOUR)
    work()
    assert (status(first), status(second)) == ("cancelled", "completed")
    assert effects() == ["begin a", "undo a", "undone a", "begin b"]
    assert slots() == {}


def test_of_several_that_cancel_each_other_the_newest_follows_the_path_of_the_first(clock, work):
    limited(singleton=Singleton(on_conflict="cancel_running"))
    start("a", do="wait")
    work()
    for name in "bcd":
        start(name)
        work()
    assert statuses() == ["waiting", "waiting", "waiting", "waiting"]
    assert [run.path for run in WorkflowRun.objects.order_by("pk")] == ["@on_cancel"] * 3 + [""]
    clock.tick(HOUR)
    work()
    assert statuses() == ["cancelled", "cancelled", "cancelled", "completed"]
    assert effects()[-1] == "begin d"
    assert slots() == {}


def test_a_conflict_does_not_disturb_a_path_that_a_failure_has_begun(clock, work):
    limited(singleton=Singleton(on_conflict="cancel_running"))
    (first,) = start("a", do="fail")
    work()
    (second,) = start("b")
    work()
    clock.tick(HOUR)
    work()
    assert (status(first), first.error, status(second)) == ("failed", "no", "completed")


def test_a_run_that_fails_in_the_queue_does_not_wait_for_its_turn(clock, work):
    """Its deadline ends the waiting, and it has never been the only one."""
    limited(singleton=Singleton(on_conflict="queue"), deadline=DAY)
    (first,) = start("a", do="wait")
    work()
    clock.tick(HOUR)
    (second,) = start("b")
    work()
    WorkflowRun.objects.filter(pk=first.pk).update(deadline=clock.now + 9 * DAY, wake_at=clock.now + 9 * DAY)
    clock.tick(DAY)
    work()
    assert (status(second), held(second)) == ("waiting", [])
    assert "waited for a slot of the limit 'singleton' of workflow limited" in second.error
    assert (second.started_at, effects()) == (None, ["begin a", "undo b"])
    clock.tick(HOUR)
    work()
    assert (status(second), effects()[-1], held(first)) == ("failed", "undone b", ["singleton held"])
    engine.resume(second)
    work()
    assert (status(second), held(second)) == ("waiting", ["singleton queued"])
    engine.cancel(first, at_once=True)
    work()
    assert (status(second), effects()[-1]) == ("completed", "begin b")


def test_a_broken_path_that_is_resumed_waits_for_the_run_that_lives(clock, work):
    limited("fail", singleton=Singleton())
    (first,) = start("a", do="fail")
    work()
    assert (status(first), held(first)) == ("failed", [])
    (second,) = start("b", do="wait")
    work()
    limited(singleton=Singleton())
    engine.resume(first)
    work()
    assert (status(first), held(first)) == ("waiting", ["singleton queued"])
    engine.cancel(second, at_once=True)
    work()
    clock.tick(HOUR)
    work()
    assert (status(first), first.error, effects()[-1]) == ("failed", "no", "undone a")


def test_at_once_gives_the_place_of_a_path_away(clock, work):
    limited(singleton=Singleton(on_conflict="queue"))
    (first,) = start("a", do="fail")
    (second,) = start("b")
    work()
    assert status(second) == "waiting"
    engine.cancel(first, at_once=True)
    work()
    assert (status(first), status(second)) == ("failed", "completed")


# -- what starts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit", [{"rate_limit": RateLimit(1, per=DAY)}, {"throttle": Throttle(1, per=DAY)}], ids=["rate limit", "throttle"]
)
def test_a_path_starts_nothing(clock, work, limit):
    """It is neither refused nor spread over time, also if the run has never started."""
    limited("", deadline=HOUR, **limit)
    start("a")
    (second,) = start("b")
    if "rate_limit" in limit:
        clock.tick(HOUR)  # no worker lived before its deadline
    work()
    clock.tick(HOUR)
    work()
    assert (status(second), second.started_at) == ("failed", None)
    assert effects()[-1] == "undo b"
    assert not Slot.objects.filter(row_pk=second.pk).exclude(term="period").exists()


def test_a_run_that_is_cancelled_in_the_queue_leaves_it(clock, work):
    limited("", throttle=Throttle(1, per=HOUR))
    (_, second, third) = start("a", "b", "c")
    work()
    engine.cancel(second)
    work()
    assert (status(second), effects()) == ("cancelled", ["begin a", "undo b"])
    clock.tick(HOUR)
    work()
    assert (status(third), effects()[-1]) == ("completed", "begin c")


def test_a_run_that_its_event_has_not_started_yet_has_nothing_to_undo(clock, work):
    """Also if it has a Context already, because its key reads it."""

    @event_workflow("reservation_confirmed", name="paced", throttle=Throttle(1, per=HOUR, key="{{ ctx.group }}"))
    class Paced:
        Context = Job

        @step(start=True)
        def begin(self):
            leave("begin")
            return complete()

        @on_cancel
        def undo(self):
            leave("undo")

        @on_fail
        def failed(self):
            leave("failed")

    for _ in range(2):
        Reservation.objects.create(status="confirmed")
    work()
    waiting = the_run(status="waiting")
    assert (waiting.awaits_start, waiting.has_no_context) == (True, False)
    assert engine.cancel(waiting) is True
    assert (waiting.status, effects()) == ("cancelled", ["begin"])


# -- concurrency -------------------------------------------------------------------------------------------------------


def test_the_steps_of_a_path_have_their_turns_like_all_others(clock, work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "DRAIN_BUDGET": timedelta(microseconds=1)}
    limited(concurrency=Concurrency(1))
    first, second = start("a", "b", do="fail")
    perform(first, clock)
    assert (status(first), first.path, held(first)) == ("running", "@on_fail", ["concurrency held"])
    perform(second, clock)
    assert held(second) == ["concurrency queued"]
    work()
    assert effects() == ["begin a", "undo a", "begin b", "undo b"]
    clock.tick(HOUR)
    work()
    assert (statuses(), slots()) == (["failed", "failed"], {})


def test_a_path_waits_for_the_end_of_the_step_in_the_middle_of_which_its_run_was_cancelled(clock, work):
    @workflow("slow", concurrency=Concurrency(1))
    class Slow:
        Context = Job

        @step(start=True, atomic=False)
        def begin(self):
            pk = get_run().pk
            elsewhere(lambda: engine.cancel(pk))
            elsewhere(drain)  # another worker
            leave(f"end of the step: {effects()}")
            return complete()

        @on_cancel
        def undo(self):
            leave("undo")

    run = engine.start("slow")
    work()
    assert effects() == ["end of the step: []", "undo"]
    assert (status(run), slots()) == ("cancelled", {})


def test_a_path_without_a_context_asks_for_nothing_that_has_a_key(clock, work):
    @event_workflow(
        "reservation_confirmed",
        name="keyed",
        default_retry=Retry(max_attempts=1),
        concurrency=[Concurrency(1, key="{{ ctx.group }}"), Concurrency(1)],
    )
    class Keyed:
        Context = Job

        @classmethod
        def create_context(cls, event):
            raise LookupError("no room")

        @step(start=True)
        def begin(self):
            return complete()

        @on_fail
        def failed(self, error):
            leave(f"{self.context} {error.splitlines()[-1]}")

    Reservation.objects.create(status="confirmed")
    work()
    assert (the_run(name="keyed").status, effects(), slots()) == ("failed", ["None LookupError: no room"], {})


# -- pauses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["run", "workflow"])
def test_a_paused_run_that_is_cancelled_undoes_its_work_after_the_pause(clock, work, what):
    limited("")
    (first,) = start("a", do="wait")
    work()
    target: dict[str, Any] = {} if what == "run" else {"workflow": "limited"}
    arguments = [first] if what == "run" else []
    engine.pause(*arguments, **target)
    assert engine.cancel(first, "not today") is True
    work()
    assert (status(first), effects()) == ("running", ["begin a"])
    assert "the end of the pause" in first.waits_for(clock.now)
    engine.unpause(*arguments, **target)
    work()
    assert (status(first), first.error, effects()) == ("cancelled", "not today", ["begin a", "undo a"])


def test_a_path_can_be_paused(clock, work):
    limited()
    (first,) = start("a", do="fail")
    work()
    engine.pause(first)
    clock.tick(HOUR)
    work()
    assert (status(first), history(first)[-1]) == ("waiting", ("failed", 1, "sleep"))
    engine.unpause(first)
    work()
    assert (status(first), effects()[-1]) == ("failed", "undone a")
