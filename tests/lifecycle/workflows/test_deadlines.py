"""``deadline=``: a run that has not ended by then fails, whatever it waits for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.translation import override

from django_ai.automation import (
    Retry,
    RetryAfter,
    complete,
    engine,
    event_workflow,
    fail,
    get_wake,
    goto,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.events import claims
from django_ai.automation.events.models import EventClaim
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.signals import row_failed
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.models import Signal, Wait, WorkflowRun
from tests.support.limited_runs import DAY, HOUR, MINUTE, SECOND, Doing, begun, overdue
from tests.support.rows import effects, history, leave, status

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]


@pytest.fixture
def limited() -> type:
    """A workflow with a deadline of an hour, which waits in the way that its Context names."""

    @workflow("limited", deadline=HOUR)
    class Limited:
        Context = Doing

        @step(start=True, retry=Retry(max_attempts=99, base_delay=7 * MINUTE, backoff_factor=1, max_delay=DAY))
        def begin(self):
            self.context.tries += 1
            match self.context.do:
                case "sleep":
                    return sleep(DAY, then=self.end)
                case "signal":
                    return wait("go", then=self.end)
                case "long signal":
                    return wait("go", timeout=DAY, then=self.end)
                case "event":
                    return wait_for_event("checkin_due", match={"pk": 7}, then=self.end)
                case "child":
                    return run_subflow("endless child", then=self.end)
                case "fail":
                    raise ValueError("no")
                case "defer":
                    raise RetryAfter(7 * MINUTE, "HTTP 429")
            return goto(self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

        @on_fail
        def failed(self, error):
            leave(f"failed {self.context.do}")

    declare_endless_child()
    return Limited


def declare_endless_child() -> None:
    @workflow("endless child")
    class EndlessChild:
        Context = Doing

        @step(start=True)
        def begin(self):
            return wait("never")


WAYS = {
    "sleep": "its step 'end' was not completed.",
    "signal": "its step 'begin' waited for the signal 'go'.",
    "long signal": "its step 'begin' waited for the signal 'go', until 2030-01-08 13:00:00.",
    "event": "its step 'begin' waited for the event 'checkin_due' with {'pk': 7}.",
    "child": "its step 'begin' waited for its child endless child #",
    "fail": "its step 'begin' had failed 9 times: ValueError: no.",
    "defer": "its step 'begin' was to be repeated because its code raised RetryAfter 9 times in a row: HTTP 429.",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_fails_at_its_deadline_whatever_it_waits_for(limited, clock, work, way):
    heard: list[Any] = []

    def listen(sender: Any, row: Any, reason: str, **kwargs: Any) -> None:
        heard.append((row.pk, reason))

    row_failed.connect(listen)
    try:
        run = engine.start("limited", do=way)
        due = clock.now + HOUR
        while clock.now < due:
            work()
            run.refresh_from_db()
            assert (run.deadline, run.is_finished) == (due, False)
            assert run.wake_at <= due
            clock.now = run.wake_at
        assert effects() == []
        with override("de"):  # the reason is stored
            work()
    finally:
        row_failed.disconnect(listen)
    assert (status(run), run.wake_at, run.lease, run.finished_at) == ("failed", None, None, due)
    assert run.error.startswith(f"The deadline of this run, 2030-01-07T13:00:00+00:00, has passed: {WAYS[way]}")
    assert effects() == [f"failed {way}"]
    assert heard == [(run.pk, run.error)]
    assert history(run)[-2:] == [(run.current_step, run.attempt + 1, "deadline"), ("failed", 1, "complete")]
    assert not Wait.objects.open().exists()
    work(clock.now + DAY)
    assert effects() == [f"failed {way}"]


def test_a_run_that_completes_in_time_is_not_affected(limited, clock, work):
    run = begun("limited", work, do="")
    assert (status(run), effects()) == ("completed", ["end"])
    clock.tick(DAY)
    assert work() == 0


def test_what_ends_a_wait_in_time_is_received(limited, clock, work):
    run = begun("limited", work, do="signal")
    clock.tick(HOUR - SECOND)
    engine.signal("go")
    work()
    assert (status(run), effects()) == ("completed", ["end"])


def test_a_timeout_before_the_deadline_has_its_effect(clock, work):
    @workflow("impatient", deadline=HOUR)
    class Impatient:
        Context = Doing

        @step(start=True)
        def begin(self):
            return wait("go", timeout=MINUTE, on_timeout=self.late)

        @step()
        def late(self):
            leave("late")
            return complete()

    run = begun("impatient", work)
    assert run.wake_at == clock.now + MINUTE
    work(clock.now + MINUTE)
    assert (status(run), effects()) == ("completed", ["late"])


def test_a_signal_that_no_worker_delivered_in_time_does_not_prevent_the_failure(limited, clock, work):
    run = begun("limited", work, do="signal")
    clock.tick(HOUR - SECOND)
    engine.signal("go")  # and no worker lives
    clock.tick(SECOND)
    work()
    assert (status(run), effects()) == ("failed", ["failed signal"])


@pytest.mark.parametrize(
    ("do", "expected", "outcomes"),
    [
        ("complete", "completed", [("begin", 1, "complete")]),
        ("goto", "failed", [("begin", 1, "goto"), ("end", 1, "deadline")]),
        ("sleep", "failed", [("begin", 1, "sleep"), ("end", 1, "deadline")]),
        ("raise", "failed", [("begin", 1, "error"), ("begin", 2, "deadline")]),
    ],
)
def test_a_step_that_is_running_at_the_deadline_is_not_interrupted(clock, work, do, expected, outcomes):
    @workflow("slow", deadline=HOUR)
    class Slow:
        Context = Doing

        @step(start=True)
        def begin(self):
            clock.tick(2 * HOUR)
            match self.context.do:
                case "complete":
                    return complete()
                case "sleep":
                    return sleep(DAY, then=self.end)
                case "raise":
                    raise ValueError("no")
            return goto(self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

    run = begun("slow", work, do=do)
    assert (status(run), effects(), history(run)) == (expected, [], outcomes)


def test_a_loop_of_steps_ends_at_the_deadline(clock, work):
    @workflow("circle", deadline=HOUR)
    class Circle:
        Context = Doing

        @step(start=True)
        def again(self):
            self.context.tries += 1
            clock.tick(MINUTE)
            return goto(self.again)

    run = begun("circle", work)
    assert (status(run), run.data["tries"]) == ("failed", 60)


def test_a_run_that_no_worker_claimed_in_time_fails_without_entering_a_step(limited, clock, work):
    run = engine.start("limited", do="late")
    clock.tick(HOUR)
    work()
    assert (status(run), effects(), run.started_at) == ("failed", ["failed late"], None)
    assert history(run) == [("begin", 1, "deadline"), ("failed", 1, "complete")]
    assert run.error.endswith("its step 'begin' was not completed.")


def test_a_run_whose_worker_died_fails_when_its_lease_has_run_out(limited, clock, work):
    run = engine.start("limited", do="")
    claim(WorkflowRun, clock.now, 1)
    clock.tick(HOUR)
    work()
    assert (status(run), effects()) == ("failed", ["failed "])


# -- children, claims, parking -----------------------------------------------------------------------------------------


def test_the_children_end_with_the_run(limited, clock, work):
    run = begun("limited", work, do="child")
    child = WorkflowRun.objects.get(name="endless child")
    clock.tick(HOUR)
    work()
    assert (status(run), status(child)) == ("failed", "cancelled")
    assert child.error.startswith(f"Its parent {run} ended: The deadline of this run")
    engine.resume(run)
    work()
    assert (status(run), effects()) == ("completed", ["failed child", "end"])  # it has received the end of its child


def test_a_parent_receives_the_failure_of_its_late_child(clock, work):
    @workflow("parent")
    class Parent:
        Context = Doing

        @step(start=True)
        def begin(self):
            return run_subflow("late child", then=self.end)

        @step()
        def end(self):
            return fail("The child was late.")

    @workflow("late child", deadline=MINUTE)
    class LateChild:
        Context = Doing

        @step(start=True)
        def begin(self):
            return wait("never")

    parent = engine.start("parent")
    work()
    clock.tick(MINUTE)
    work()
    assert (status(parent), parent.error) == ("failed", "The child was late.")


def test_claims_are_released(clock, work):
    @workflow("claims", deadline=HOUR)
    class Claims:
        Context = Doing

        @step(start=True)
        def begin(self):
            claims.hold("checkin_due", {"pk": 7}, expires_in=None)
            return wait("never")

    engine.start("claims")
    work()
    assert EventClaim.objects.count() == 1
    clock.tick(HOUR)
    work()
    assert EventClaim.objects.count() == 0


def test_a_parked_run_waits_for_an_operator_and_then_has_its_whole_time(limited, clock, work):
    run = begun("limited", work, do="signal")
    (row,) = claim(WorkflowRun, clock.now + HOUR, 1)
    row.park("three workers died")
    clock.tick(DAY)
    assert work() == 0
    engine.resume(run)
    work()
    assert (status(run), run.deadline, run.wake_at) == ("suspended", clock.now + HOUR, clock.now + HOUR)
    clock.tick(HOUR)
    work()
    assert status(run) == "failed"


def test_a_failed_run_that_is_resumed_has_its_whole_time_again(limited, clock, work):
    run = overdue("limited", clock, work, do="signal")
    assert status(run) == "failed"
    engine.resume(run)
    work()
    assert (status(run), run.deadline) == ("suspended", clock.now + HOUR)
    engine.signal("go")
    work()
    assert (status(run), effects()) == ("completed", ["failed signal", "end"])


def test_a_resumed_run_waits_for_the_rest_of_what_it_waited_for(clock, work):
    @workflow("both", deadline=HOUR)
    class Both:
        Context = Doing

        @step(start=True)
        def begin(self):
            return wait_all(a=wait("a"), b=wait("b"), then=self.end)

        @step()
        def end(self):
            leave(sorted(get_wake().branches))
            return complete()

    run = begun("both", work)
    engine.signal("a")
    work()
    clock.tick(HOUR)
    work()
    assert status(run) == "failed"
    assert "its step 'begin' waited for the signal 'b'" in run.error
    engine.resume(run)
    work()
    assert (status(run), run.wake_at) == ("suspended", clock.now + HOUR)
    engine.signal("b")
    work()
    assert (status(run), effects()) == ("completed", ["['a', 'b']"])


@pytest.mark.parametrize("choice", [wait_any, wait_all])
def test_a_run_with_several_branches_fails_at_its_deadline(clock, work, choice):
    @workflow("branches", deadline=HOUR)
    class Branches:
        Context = Doing

        @step(start=True)
        def begin(self):
            return choice(go=wait("go"), later=sleep(DAY), child=run_subflow("endless child"), then=self.end)

        @step()
        def end(self):
            return complete()

    declare_endless_child()
    run = begun("branches", work)
    assert run.wake_at == clock.now + HOUR
    clock.tick(HOUR)
    work()
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"failed", "cancelled"}


def test_a_run_that_is_resumed_in_time_keeps_its_deadline(limited, clock, work):
    @workflow("fails", deadline=HOUR)
    class Fails:
        Context = Doing

        @step(start=True)
        def begin(self):
            return fail("no")

    run = begun("fails", work)
    deadline = clock.now + HOUR
    clock.tick(MINUTE)
    engine.resume(run)
    run.refresh_from_db()
    assert run.deadline == deadline


def test_a_run_whose_code_is_missing_fails_when_the_code_is_back(limited, clock, work):
    run = begun("limited", work, do="signal")
    definition = definitions.find_workflow("limited")
    definitions.unregister(definition)
    clock.tick(HOUR)
    work()
    assert status(run) == "parked"
    definitions.register(definition)
    work(clock.now + DAY)
    assert (status(run), effects()) == ("failed", ["failed signal"])


def test_a_run_whose_step_no_longer_exists_fails_at_its_deadline(limited, clock, work):
    run = begun("limited", work, do="sleep")
    WorkflowRun.objects.update(current_step="renamed")
    clock.tick(HOUR)
    work()
    assert (status(run), effects()) == ("failed", ["failed sleep"])
    assert "its step 'renamed' was not completed" in run.error


# -- what is shown, and what it costs ----------------------------------------------------------------------------------


def test_a_run_says_that_it_waits_for_its_deadline(limited, clock, work):
    for way in ("signal", "sleep", "fail"):
        engine.start("limited", do=way)
    work()
    assert [each.waits_for for each in explain(clock.now, ["workflow run"])] == [
        "the signal 'go' or its deadline, 2030-01-07 14:00:00",
        "its deadline, 2030-01-07 14:00:00",
        "attempt 2, 2030-01-07 13:07:00",
    ]


def test_without_a_deadline_the_column_is_not_written(clock, work):
    @workflow("unlimited")
    class Unlimited:
        Context = Doing

        @step(start=True)
        def begin(self):
            return sleep(HOUR, then=self.middle)

        @step()
        def middle(self):
            return wait("go", then=self.end)

        @step()
        def end(self):
            return complete()

    run = engine.start("unlimited")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        work()
        clock.tick(HOUR)
        work()
        engine.signal("go")
        work()
    assert status(run) == "completed"
    column = connection.ops.quote_name("deadline")
    updates = [each["sql"] for each in queries if "UPDATE" in each["sql"] and "run" in each["sql"]]
    assert updates
    assert [sql for sql in updates if f"{column} =" in sql.partition("WHERE")[0]] == []


@pytest.mark.parametrize("wrong", [timedelta(0), -HOUR, 3600, "1h"])
@pytest.mark.parametrize("decorator", [lambda d: workflow("x", deadline=d), lambda d: event_workflow("x", deadline=d)])
def test_what_is_no_duration_is_refused_at_import(decorator, wrong):
    with pytest.raises(DefinitionError, match=r"deadline=.* must be a positive timedelta"):

        @decorator(wrong)
        class Wrong:
            Context = Doing

            @step(start=True)
            def begin(self):
                return complete()


def test_the_time_machine_stops_at_the_deadline(limited):
    with time_machine("2030-01-07T12:00+01:00", raise_errors=True) as machine:
        run = engine.start("limited", do="signal")
        machine.advance(minutes=59)
        assert status(run) == "suspended"
        machine.advance(minutes=1)
        assert (status(run), machine.errors, effects()) == ("failed", [], ["failed signal"])


def test_a_signal_to_a_run_that_has_failed_at_its_deadline_changes_nothing(limited, clock, work):
    run = overdue("limited", clock, work, do="signal")
    engine.signal("go", run=run)
    work()
    assert status(run) == "failed"
    assert Signal.objects.get().consumed_at is None
