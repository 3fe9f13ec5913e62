"""Steps: their outcomes, their history, and how a run ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel

from django_ai.automation.workflows.core import (
    Retry,
    Workflow,
    complete,
    engine,
    event_workflow,
    fail,
    get_context,
    get_run,
    get_wake,
    goto,
    idempotency_key,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, history, leave, the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
ONCE = Retry(max_attempts=1)


# -- goto and the Context ----------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_goto_goes_on_in_the_same_worker_with_one_commit_a_step(clock, work):
    flow(lambda self: goto(self.second), second=lambda self: goto("third"), third=lambda self: complete())
    found = run(work)
    assert (found.status, found.current_step, found.visit) == ("completed", "third", 4)
    assert (found.started_at, found.finished_at, found.wake_at, found.lease) == (clock(), clock(), None, None)
    assert history(found) == [("first", 1, "goto"), ("second", 1, "goto"), ("third", 1, "complete")]


def test_progress_is_kept_from_step_to_step(work):
    flow(
        lambda self: goto(self.second, progress=0.25),
        second=lambda self: goto(self.third) if get_run().progress == 0.25 else fail("no progress"),
        third=lambda self: wait("bell", then=self.fourth),
        fourth=lambda self: goto(self.fifth, progress=0),  # it may go back
        fifth=lambda self: complete() if get_run().progress == 0 else fail("no progress"),
    )
    found = run(work)
    assert (found.status, found.progress) == ("suspended", 0.25)
    engine.signal("bell")
    work()
    found.refresh_from_db()
    assert (found.status, found.progress) == ("completed", 1.0)


def test_a_run_without_progress_has_none(work):
    flow(lambda self: goto(self.second), second=lambda self: complete())
    assert run(work).progress is None


def test_history_has_a_row_for_each_try(clock, work):
    def second(self):
        self.context.n += 1
        if self.context.n < 3:
            raise RuntimeError(f"try {self.context.n}")
        return complete()

    flow(lambda self: goto(self.second), second=second)
    found = run(work)
    for _ in range(3):
        clock.tick(10 * SECOND)
        work()
    assert history(found) == [
        ("first", 1, "goto"),
        ("second", 1, "error"),
        ("second", 2, "error"),
        ("second", 3, "complete"),
    ]
    rows = list(found.steps.all())
    assert [row.visit for row in rows] == [1, 2, 2, 2]
    assert "RuntimeError: try 1" in rows[1].error
    assert rows[3].error == ""
    assert all(row.started is not None and row.finished >= row.started for row in rows)


def test_a_loop_of_gotos_gives_others_a_turn_and_ends(work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "DRAIN_BUDGET": timedelta(microseconds=1)}

    def first(self):
        self.context.n += 1
        return goto(self.first) if self.context.n < 20 else complete()

    flow(first)
    found = run(work)
    assert (found.status, found.data["n"], found.steps.count()) == ("completed", 20, 20)


def test_context_is_one_object(work):
    def first(self):
        assert self.context is get_context()
        get_context().n = 1
        self.context.text = "x"
        return goto(self.second)

    def second(self):
        assert (get_context().n, self.context.text) == (1, "x")
        return complete()

    flow(first, second=second)
    assert run(work).status == "completed"


def test_outside_a_step_there_is_no_context():
    for function in (get_context, get_wake, get_run):
        with pytest.raises(RuntimeError, match="inside a step"):
            function()


class PrintContext(BaseModel):
    pages: int = 0


def test_typed_base_and_typed_get_context_give_the_same_context(work):
    @workflow("print")
    class Print(Workflow[PrintContext]):
        Context = PrintContext

        @step(start=True)
        def first(self):
            assert get_context(PrintContext) is get_context(BaseModel) is self.context
            self.context.pages += 1
            return goto(self.second)

        @step
        def second(self):
            return complete(pages=get_context(PrintContext).pages + 1)

    assert run(work, "print", pages=5).data == {"pages": 7}


def test_get_context_of_another_class_fails_at_once_and_names_both(work):
    def first(self):
        get_context(PrintContext)

    flow(first)
    found = run(work)
    assert (found.status, found.steps.count()) == ("failed", 1)
    assert "get_context(PrintContext): the Context of the running workflow is a flow.<locals>.Context." in found.error


def test_get_run_is_the_run(work):
    def first(self):
        leave(get_run().pk)
        return complete()

    flow(first)
    found = run(work)
    assert effects() == [str(found.pk)]


# -- sleeping ----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_step_that_slept_is_entered_again(clock, work):
    def first(self):
        leave(get_wake().reason)
        return complete() if get_wake().reason == "timer" else sleep(HOUR)

    flow(first)
    found = run(work)
    assert (found.status, found.wake_at) == ("waiting", clock() + HOUR)
    clock.tick(HOUR - timedelta(microseconds=1))
    assert work() == 0
    clock.tick(timedelta(microseconds=1))
    work()
    found.refresh_from_db()
    assert (found.status, effects()) == ("completed", ["first", "timer"])
    assert history(found) == [("first", 1, "sleep"), ("first", 1, "complete")]


def test_then_goes_on_elsewhere(clock, work):
    def second(self):
        leave(get_wake().reason)
        return complete()

    flow(lambda self: sleep(HOUR, then=self.second), second=second)
    run(work)
    clock.tick(HOUR)
    work()
    assert effects() == ["timer"]


def test_sleeping_until_a_date(clock, work):
    until = clock() + 3 * HOUR
    flow(lambda self: sleep(until=until, then="second"), second=lambda self: complete())
    assert run(work).wake_at == until
    clock.now = until
    work()
    assert the_run().status == "completed"


def test_sleeping_until_a_date_that_is_past_does_not_sleep(clock, work):
    flow(lambda self: sleep(until=clock() - HOUR, then="second"), second=lambda self: complete())
    assert run(work).status == "completed"


# -- retries -----------------------------------------------------------------------------------------------------------


def test_the_context_survives_the_error_and_the_database_does_not(clock, work):
    def first(self):
        self.context.n += 1
        self.context.items.append(self.context.n)
        leave(f"try {self.context.n}")
        if self.context.n < 3:
            raise RuntimeError
        return complete()

    flow(first)
    found = run(work)
    assert found.data["n"] == 1
    for _ in range(3):
        clock.tick(10 * SECOND)
        work()
    found.refresh_from_db()
    assert (found.status, found.data["n"], found.data["items"]) == ("completed", 3, [1, 2, 3])
    assert effects() == ["try 3"]


def test_the_budget_belongs_to_the_visit(clock, work):
    """Each visit has its own budget of three attempts: two failures in each of two steps do not fail the run."""

    def stumble(self, target):
        self.context.n += 1
        if self.context.n % 3:
            raise RuntimeError
        return target

    flow(lambda self: stumble(self, goto("second")), second=lambda self: stumble(self, complete()))
    found = run(work)
    for _ in range(8):
        clock.tick(10 * SECOND)
        work()
    found.refresh_from_db()
    assert (found.status, found.data["n"]) == ("completed", 6)


@pytest.mark.exact_times
def test_delays_are_exact_and_the_last_error_is_kept(clock, work):
    def first(self):
        self.context.n += 1
        raise ValueError(f"try {self.context.n}")

    flow(first, retry=Retry(max_attempts=3, base_delay=2 * SECOND, backoff_factor=5))
    found = run(work)
    for delay in (2, 10):
        found.refresh_from_db()
        assert (found.status, found.wake_at) == ("waiting", clock() + delay * SECOND)
        clock.tick(delay * SECOND - timedelta(microseconds=1))
        assert work() == 0
        clock.tick(timedelta(microseconds=1))
        work()
    found.refresh_from_db()
    assert (found.status, found.wake_at, found.data["n"], found.finished_at) == ("failed", None, 3, clock())
    assert "ValueError: try 3" in found.error
    assert "Traceback" in found.error


def test_a_steps_own_retry_goes_before_the_workflows(clock, work):
    @step(retry=ONCE)
    def second(self):
        raise ValueError

    flow(lambda self: goto("second"), second=second, retry=Retry(max_attempts=9))
    found = run(work)
    assert (found.status, history(found)) == ("failed", [("first", 1, "goto"), ("second", 1, "error")])


def test_the_idempotency_key_is_one_for_a_visit(clock, work):
    keys = []

    def first(self):
        keys.append(idempotency_key())
        self.context.n += 1
        if self.context.n in (1, 2, 4):
            raise RuntimeError
        return goto(self.first) if self.context.n < 5 else complete()

    flow(first)
    run(work)
    for _ in range(6):
        clock.tick(10 * SECOND)
        work()
    assert the_run().status == "completed"
    assert len(keys) == 5
    assert len({*keys[:3]}) == 1
    assert len({*keys[3:]}) == 1
    assert keys[0] != keys[3]


def test_without_atomic_what_was_written_stays_and_the_progress_is_kept(clock, work):
    @step(atomic=False)
    def second(self):
        assert not transaction.get_connection().in_atomic_block
        leave("second")
        self.context.n += 1
        if self.context.n < 2:
            raise RuntimeError
        return complete()

    flow(lambda self: goto(self.second), second=second)
    run(work)
    clock.tick(SECOND)
    work()
    assert (the_run().status, the_run().data["n"], effects()) == ("completed", 2, ["second", "second"])


def test_create_context_is_tried_again_too(clock, work):
    @event_workflow("reservation_confirmed", name="late context")
    class LateContext:
        class Context(BaseModel):
            note: str

        @classmethod
        def create_context(cls, event):
            if not event.entity.note:
                raise LookupError("no note yet")
            return cls.Context(note=event.entity.note)

        @step(start=True)
        def first(self):
            leave(self.context.note)
            return complete()

    stay = Reservation.objects.create(status="confirmed")
    work()
    found = the_run()
    assert found.status == "waiting"
    assert "no note yet" in found.error
    Reservation.objects.filter(pk=stay.pk).update(note="sea view")
    clock.tick(SECOND)
    work()
    assert (the_run().status, effects()) == ("completed", ["sea view"])


# -- ends --------------------------------------------------------------------------------------------------------------


def test_fail_is_the_end_without_a_retry(work):
    def first(self):
        leave("kept")
        self.context.n = 5
        return fail("no answer")

    flow(first)
    found = run(work)
    assert (found.status, found.error, found.data["n"]) == ("failed", "no answer", 5)
    assert history(found) == [("first", 1, "fail")]
    assert effects() == ["kept"]


def test_complete_merges_its_fields(work):
    flow(lambda self: complete(n=5, text="done"))
    found = run(work)
    assert (found.status, found.data["n"], found.data["text"]) == ("completed", 5, "done")


def test_complete_with_an_unknown_field_fails_at_once_and_names_it(work):
    def first(self):
        leave("lost")
        return complete(final_stat="ok")

    flow(first)
    found = run(work)
    assert (found.status, history(found)) == ("failed", [("first", 1, "error")])
    assert "final_stat" in found.error
    assert "no such field" in found.error
    assert effects() == []


def test_complete_with_a_value_of_a_wrong_type_fails(work):
    flow(lambda self: complete(n="many"))
    found = run(work)
    assert found.status == "failed"
    assert "n:" in found.error
    assert "many" in found.error


@pytest.mark.parametrize("value", [None, "second", 5, {"a": 1}, complete, (1, 2)])
def test_what_is_no_outcome_fails_at_once_and_names_everything(value, work):
    def first(self):
        leave("lost")
        return value

    flow(first, retry=Retry(max_attempts=5))
    found = run(work)
    assert (found.status, history(found)) == ("failed", [("first", 1, "error")])
    assert "OutcomeError" in found.error
    assert "flow.first" in found.error
    assert repr(value)[:50] in found.error
    assert effects() == []


def test_forgetting_to_return_is_guessed(work):
    flow(lambda self: None)
    assert "Did you forget `return complete()`?" in run(work).error


@pytest.mark.parametrize(
    "outcome",
    [
        lambda: goto("secnd"),
        lambda: sleep(HOUR, then="secnd"),
        lambda: wait("x", timeout=HOUR, on_timeout="secnd"),
        lambda: wait("x", then="secnd"),
        lambda: run_subflow("flow", then="secnd"),
    ],
)
def test_a_target_that_does_not_exist_fails_at_once_with_the_nearest(outcome, work):
    flow(lambda self: outcome(), second=lambda self: complete())
    found = run(work)
    assert (found.status, history(found)) == ("failed", [("first", 1, "error")])
    assert "secnd" in found.error
    assert "Did you mean 'second'" in found.error
    assert WorkflowRun.objects.count() == 1


def test_wrong_arguments_of_an_outcome_fail_at_once(work):
    flow(lambda self: sleep(5))
    found = run(work)
    assert (found.status, len(history(found))) == ("failed", 1)
    assert "sleep(5)" in found.error


# -- on_fail -----------------------------------------------------------------------------------------------------------


def noted(raises=False):
    @on_fail
    def report(self, error):
        leave(f"failed: {error.splitlines()[-1] if error else ''} n={self.context.n}")
        if raises:
            raise RuntimeError("on_fail is broken too")

    return report


def test_on_fail_hears_of_fail_and_of_spent_retries(clock, work):
    def raising(self):
        self.context.n += 1
        raise ValueError("boom")

    flow(lambda self: fail("no"), "one", report=noted())
    flow(raising, "two", report=noted(), retry=Retry(max_attempts=2))
    run(work, "one")
    run(work, "two")
    clock.tick(SECOND)
    work()
    assert effects() == ["failed: no n=0", "failed: ValueError: boom n=2"]


def test_on_fail_hears_of_what_is_no_outcome(work):
    flow(lambda self: None, report=noted())
    run(work)
    assert len(effects()) == 1


def test_on_fail_that_raises_leaves_both_errors(clock, work):
    flow(lambda self: fail("no"), report=noted(raises=True))
    found = run(work)
    for _ in range(3):
        clock.tick(HOUR)
        work()
    found.refresh_from_db()
    assert (found.status, effects()) == ("failed", [])
    assert found.error.startswith("no\n\nThen its @on_fail failed:")
    assert "RuntimeError: on_fail is broken too" in found.error


def test_on_fail_is_not_called_for_completion_or_cancellation(work):
    flow(lambda self: complete(), "one", report=noted())
    flow(lambda self: wait("x"), "two", report=noted())
    run(work, "one")
    engine.cancel(run(work, "two"))
    assert effects() == []
