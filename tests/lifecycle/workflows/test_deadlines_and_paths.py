"""Deadlines and paths: a run that fails at its deadline undoes its work in peace, and waits for the rest if resumed."""

from __future__ import annotations

from typing import Any

import pytest

from django_ai.automation import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_wake,
    goto,
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    upcoming,
    wait,
    wait_all,
    workflow,
)
from django_ai.automation.conf import conf
from django_ai.automation.events.models import Event
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.signals import row_failed
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.limited_runs import DAY, HOUR, MINUTE, Doing, begun, overdue
from tests.support.rows import effects, history, leave, status, the_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SIGNAL = "its step 'begin' waited for the signal"


@pytest.fixture
def undoing() -> type:
    """A workflow with a deadline of an hour, whose path takes two days and does what its Context says."""

    @workflow("undoing", deadline=HOUR, default_retry=Retry(max_attempts=2, base_delay=DAY, max_delay=DAY))
    class Undoing:
        Context = Doing

        @step(start=True)
        def begin(self):
            match self.context.do:
                case "fail":
                    return fail("no money")
                case "child":
                    return run_subflow("child", then=self.end)
                case "all":
                    return wait_all(a=wait("a"), b=wait("b", DAY), c=sleep(MINUTE), timeout=9 * DAY, then=self.end)
            return wait("go", then=self.end)

        @step()
        def end(self):
            wake = get_wake()
            leave(f"end {wake.reason} {sorted(wake.branches)} {wake.payload.get('status', '')}")
            return complete()

        @on_fail
        def failed(self, error):
            self.context.tries += 1
            leave(f"failed {error.partition(': ')[2][:38]}")
            if self.context.do == "break" and self.context.tries < 3:
                raise ValueError("not undone")
            return sleep(DAY, then=self.more)

        @on_cancel
        def cancelled(self):
            return sleep(DAY, then=self.more)

        @step()
        def more(self):
            return wait("undone", timeout=DAY, then=self.last, on_timeout=self.last)

        @step()
        def last(self):
            leave("undone")
            return complete()

    return Undoing


def end_path(clock: Any, work: Any) -> None:
    """Let the two days pass that the path of the workflow takes."""
    for _ in range(2):
        clock.tick(DAY)
        work()


def test_the_deadline_does_not_end_the_path_that_it_has_begun(undoing, clock, work):
    run = overdue("undoing", clock, work)
    assert (run.status, run.wake_at, run.finished_at) == ("waiting", clock.now + DAY, None)
    assert run.error.startswith("The deadline of this run, 2030-01-07T13:00:00+00:00, has passed")
    assert run.waits_for(clock.now) == "its timer, 2030-01-08 14:00:00 (on the path of its @on_fail)"
    clock.tick(DAY)
    work()
    assert (status(run), run.wake_at) == ("suspended", clock.now + DAY)
    assert "deadline" not in run.waits_for(clock.now)
    clock.tick(DAY)
    work()
    assert (status(run), run.ending, run.finished_at) == ("failed", None, clock.now)
    assert run.error.endswith(f"{SIGNAL} 'go'.")
    assert effects() == [f"failed {SIGNAL}", "undone"]
    assert [outcome for _, _, outcome in history(run)] == ["wait", "deadline", "sleep", "wait", "complete"]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_the_deadline_does_not_end_a_path_that_has_begun_before(undoing, clock, work, end):
    run = begun("undoing", work, do="fail" if end == "failed" else "wait")
    if end == "cancelled":
        engine.cancel(run, "no money")
        work()
    for _ in range(2):
        run.refresh_from_db()
        assert run.wake_at == clock.now + DAY
        clock.tick(DAY)
        work()
    assert (status(run), run.error) == (end, "no money")


def test_a_failure_is_announced_when_the_path_has_ended(undoing, clock, work):
    heard: list[Any] = []
    row_failed.connect(listen := lambda row, reason, **_: heard.append((row.pk, row.status, reason)))
    run = overdue("undoing", clock, work)
    assert heard == []
    end_path(clock, work)
    row_failed.disconnect(listen)
    assert (status(run), heard) == ("failed", [(run.pk, "failed", run.error)])


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_waits_for_the_rest_whatever_its_path_has_waited_for(undoing, clock, work):
    run = begun("undoing", work, do="all")
    engine.signal("a")
    clock.tick(MINUTE)
    work()
    assert Wait.objects.count() == 2
    clock.tick(HOUR)
    work()
    assert Wait.objects.count() == 0
    clock.tick(DAY)
    work()
    engine.signal("undone")
    work()
    assert (status(run), effects()[-1]) == ("failed", "undone")
    kept = {wait.branch: wait.deadline for wait in Wait.objects.filter(visit=run.visit)}
    assert kept == {"b": run.created_at + DAY, "": run.created_at + 9 * DAY}
    clock.tick(-2 * HOUR)
    engine.resume(WorkflowRun(pk=run.pk))  # an instance that knows nothing of the path
    work()
    assert (status(run), run.deadline) == ("suspended", clock.now + HOUR)
    assert "'b'" in run.waits_for(clock.now)
    engine.signal("b")
    work()
    assert (status(run), effects()[-1]) == ("completed", "end all ['a', 'b', 'c'] ")


def test_a_timeout_that_has_passed_meanwhile_has_its_effect(undoing, clock, work):
    run = overdue("undoing", clock, work, do="all")
    end_path(clock, work)
    assert status(run) == "failed"
    engine.signal("a")
    engine.resume(run)
    work()
    assert (status(run), effects()[-1]) == ("completed", "end all ['a', 'b', 'c'] ")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_resumed_run_receives_the_end_of_its_child_which_was_on_a_path_of_its_own(undoing, clock, work, when):
    @workflow("child")
    class Child:
        Context = Doing

        @step(start=True)
        def begin(self):
            return wait("never")

        @on_cancel
        def undo(self):
            leave("child")
            return wait("child undone", then=self.more)

        @step()
        def more(self):
            return complete()

    run = overdue("undoing", clock, work, do="child")
    child = the_run(name="child")
    assert (child.status, child.error[:18]) == ("suspended", "Its parent undoing")
    end_path(clock, work)
    assert (status(run), status(child)) == ("failed", "suspended")
    if when == "before":
        engine.signal("child undone")
        work()
    engine.resume(run)
    work()
    if when == "after":
        assert (status(run), status(child)) == ("suspended", "suspended")
        engine.signal("child undone")
        work()
    assert (status(child), status(run), effects()[-1]) == ("cancelled", "completed", "end signal [] cancelled")


def test_a_path_that_fails_leaves_both_errors_and_is_resumed_without_a_deadline(undoing, clock, work):
    run = overdue("undoing", clock, work, do="break")
    assert (run.status, run.attempt) == ("waiting", 1)
    clock.tick(DAY)
    work()
    assert status(run) == "failed"
    begin, _, end = run.error.partition("\n\nThen its @on_fail failed:\n\n")
    assert begin.endswith(f"{SIGNAL} 'go'.")
    assert "ValueError: not undone" in end
    engine.resume(run)
    work()
    end_path(clock, work)
    assert (status(run), run.error, run.ending) == ("failed", begin, None)
    engine.resume(run)
    work()
    assert (status(run), run.wake_at, run.deadline) == ("suspended", clock.now + HOUR, clock.now + HOUR)
    engine.signal("go")
    work()
    assert (status(run), effects()[-1]) == ("completed", "end signal [] ")


def test_a_run_that_leaves_its_path_has_its_whole_time_again(undoing, clock, work):
    run = overdue("undoing", clock, work, do="break")
    clock.tick(DAY)
    work()
    assert status(run) == "failed"
    engine.resume(run, "begin")
    work()
    assert (status(run), run.ending, run.wake_at) == ("suspended", None, clock.now + HOUR)


def test_a_path_that_kills_its_workers_is_parked_and_does_not_wait_for_what_the_run_waited_for(undoing, clock, work):
    run = begun("undoing", work, do="wait")
    clock.tick(HOUR)
    (row,) = claim(WorkflowRun, clock.now, 1)
    row.perform(clock)
    assert (status(run), run.current_step) == ("running", "failed")
    for _ in range(conf().MAX_LOSSES):
        claim(WorkflowRun, clock.now, 1)
        clock.tick(HOUR)
    work()
    assert (status(run), effects()) == ("parked", [])
    engine.resume(run)
    work()
    assert (status(run), effects()) == ("waiting", [f"failed {SIGNAL}"])


def test_a_run_without_a_path_keeps_its_waits(clock, work):
    """As long as no path intervenes, they are left as they are."""

    @workflow("undoing", deadline=HOUR)
    class Plain:
        Context = Doing

        @step(start=True)
        def begin(self):
            return wait("go")

    run = begun("undoing", work)
    before = list(Wait.objects.values())
    clock.tick(HOUR)
    work()
    assert (status(run), list(Wait.objects.values())) == ("failed", before)


# -- runs of events ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [None, -MINUTE])
def test_a_run_that_is_started_too_late_has_no_context_on_its_path(clock, work, offset):
    @event_workflow("checkin_due", offset=offset, deadline=HOUR, name="late")
    class Late:
        Context = Doing

        @step(start=True)
        def begin(self):
            leave("begin")
            return wait("go")

        @on_fail
        def failed(self, error):
            leave(f"{self.context} {error[:12]}")
            return goto(self.more)

        @step()
        def more(self):
            leave(f"more {self.context}")
            return complete()

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
    clock.tick(HOUR)
    if offset is None:
        work_until_there_is_a_run(clock)
    clock.tick(2 * HOUR)
    work()
    run = WorkflowRun.objects.get()
    assert (run.status, run.started_at, effects()) == ("failed", None, ["None The deadline", "more None"])
    stay.status = "cancelled"
    stay.save()  # does not withdraw what has begun its path
    assert status(run) == "failed"
    engine.resume(run)
    work()
    if offset is None:
        assert (status(run), effects()[-1]) == ("suspended", "begin")


def work_until_there_is_a_run(clock: Any) -> None:
    (event,) = claim(Event, clock.now, 1)
    event.perform(clock)
    assert WorkflowRun.objects.count() == 1


def test_what_is_planned_for_an_object_has_no_deadline_on_a_path(clock, work):
    @event_workflow("reservation_confirmed", deadline=HOUR, name="hosts")
    class Hosts:
        Context = Doing

        @step(start=True)
        def begin(self):
            return wait("go")

        @on_fail
        def failed(self):
            return wait("undone", then="last")

        @step()
        def last(self):
            return complete()

    def shown() -> list[tuple[Any, str]]:
        return [(each.at, each.reason) for each in upcoming(stay) if each.kind == "workflow"]

    stay = Reservation.objects.create(status="confirmed")
    work()
    assert shown() == [(clock.now + HOUR, "the signal 'go' or its deadline, 2030-01-07 14:00:00")]
    clock.tick(HOUR)
    work()
    assert shown() == [(None, "the signal 'undone' (on the path of its @on_fail)")]
