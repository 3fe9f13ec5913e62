"""Steps: what they return, what is kept of them, and how a run ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel, Field, ValidationError

from django_ai.automation.exceptions import NotResumableError, NotStorableError, UnknownWorkflowError
from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.core import (
    Retry,
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

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
ONCE = Retry(max_attempts=1)


def flow(first, name="flow", context=None, version=1, retry=None, **methods):
    """Declare a workflow whose start step is ``first``."""

    class Context(BaseModel):
        n: int = 0
        text: str = ""
        number: float = 0.0
        items: list = Field(default_factory=list)

    first.__name__ = "first"
    body = {
        "Context": context or Context,
        "first": step(start=True)(first),
        "__module__": __name__,
        "__qualname__": f"Flow{version}",
    }
    for title, method in methods.items():
        method.__name__ = title
        body[title] = method if hasattr(method, "__on_fail__") or hasattr(method, "__step__") else step()(method)
    return workflow(name, version=version, default_retry=retry)(type("Flow", (), body))


def run(work, name="flow", **arguments) -> WorkflowRun:
    started = engine.start(name, **arguments)
    work()
    started.refresh_from_db()
    return started


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_goto_goes_on_in_the_same_worker_with_one_commit_a_step(clock, work):
    flow(lambda self: goto(self.second), second=lambda self: goto("third"), third=lambda self: complete())
    found = run(work)
    assert (found.status, found.current_step, found.visit) == ("completed", "third", 4)
    assert (found.started_at, found.finished_at, found.wake_at, found.lease) == (clock(), clock(), None, None)
    assert history(found) == [("first", 1, "goto"), ("second", 1, "goto"), ("third", 1, "complete")]


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
    """Two failures in each of two steps are within a budget of three."""

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
        return fail("nobody home")

    flow(first)
    found = run(work)
    assert (found.status, found.error, found.data["n"]) == ("failed", "nobody home", 5)
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


def test_on_fail_that_raises_changes_nothing(work, caplog):
    flow(lambda self: fail("no"), report=noted(raises=True))
    found = run(work)
    assert (found.status, effects()) == ("failed", [])
    assert "on_fail" in caplog.text


def test_on_fail_is_not_called_for_completion_or_cancellation(work):
    flow(lambda self: complete(), "one", report=noted())
    flow(lambda self: wait("x"), "two", report=noted())
    run(work, "one")
    engine.cancel(run(work, "two"))
    assert effects() == []


# -- subflows ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def family():
    def first(self):
        return run_subflow("child", then=self.after, n=self.context.n)

    def after(self):
        wake = get_wake()
        leave(f"{wake.payload['status']} {wake.payload['data'].get('n')} {wake.payload['error'][:10]}".strip())
        return complete()

    flow(first, "parent", after=after)

    def child(self):
        if self.context.n < 0:
            return fail("negative")
        if self.context.n == 0:
            return wait("go on", then=self.end)
        return complete(n=self.context.n + 1)

    flow(child, "child", version=2, end=lambda self: complete(n=100))


@pytest.mark.usefixtures("family")
def test_a_parent_goes_on_when_its_child_has_ended(work):
    parent = run(work, "parent", n=5)
    assert (parent.status, effects()) == ("completed", ["completed 6"])
    child = the_run(name="child")
    assert (child.status, child.parent, child.depth) == ("completed", parent, parent.depth + 1)


@pytest.mark.usefixtures("family")
def test_a_parent_hears_of_failure(work):
    assert run(work, "parent", n=-1).status == "completed"
    assert effects() == ["failed -1 negative"]


@pytest.mark.usefixtures("family")
def test_a_parent_waits_as_long_as_its_child(clock, work):
    parent = run(work, "parent", n=0)
    clock.tick(timedelta(days=30))
    work()
    parent.refresh_from_db()
    assert parent.status == "suspended"
    engine.signal("go on")
    work()
    assert effects() == ["completed 100"]


@pytest.mark.usefixtures("family")
def test_a_parent_hears_of_cancellation_and_takes_its_children_with_it(work):
    run(work, "parent", n=0)
    engine.cancel(the_run(name="child"), "not today")
    work()
    assert effects() == ["cancelled 0 not today"]
    second = run(work, "parent", n=0)
    engine.cancel(second)
    assert the_run(parent=second).status == "cancelled"


def test_an_unknown_child_fails_its_parent(work):
    flow(lambda self: run_subflow("flwo"))
    found = run(work)
    assert found.status == "failed"
    assert "Did you mean 'flow'" in found.error


def test_a_child_whose_arguments_do_not_fit(work):
    flow(lambda self: complete(), "child", version=2)
    flow(lambda self: run_subflow("child", n="many"), retry=ONCE)
    found = run(work)
    assert found.status == "failed"
    assert "many" in found.error
    assert WorkflowRun.objects.count() == 1


# -- versions and what is gone -----------------------------------------------------------------------------------------


def test_versions_side_by_side(clock, work):
    flow(lambda self: sleep(HOUR, then="end"), version=1, end=lambda self: [leave("old"), complete()][1])
    old = run(work)
    flow(lambda self: goto("end"), version=2, end=lambda self: [leave("new"), complete()][1])
    new = run(work)
    assert (old.version, new.version) == ("1", "2")
    assert effects() == ["new"]
    clock.tick(HOUR)
    work()
    assert effects() == ["new", "old"]


def park_and_resume(clock, work, break_it, mend_it) -> WorkflowRun:
    """A sleeping run wakes to what ``break_it`` did, parks, and goes on after ``mend_it``; another is not touched."""
    flow(lambda self: sleep(HOUR), "other", version=7)
    run(work, "other")
    found = run(work)
    break_it()
    clock.tick(HOUR)
    work()
    found.refresh_from_db()
    assert (found.status, found.parked_at, found.lease) == ("parked", clock(), None)
    assert the_run(name="other").wake_at == clock() + HOUR
    error = found.error
    mend_it()
    engine.resume(found)
    work()
    found.refresh_from_db()
    assert (found.status, found.error, effects()) == ("completed", "", ["end"])
    found.error = error
    return found


def sleeper(**arguments):
    return flow(
        lambda self: sleep(HOUR, then="end"), end=lambda self: [leave("end"), complete()][1], **arguments
    ).__workflow__


@pytest.mark.exact_times
def test_a_class_that_is_gone_parks(clock, work):
    mine = sleeper()
    found = park_and_resume(clock, work, lambda: definitions.unregister(mine), sleeper)
    assert "UnknownWorkflowError" in found.error
    assert "'flow'" in found.error


@pytest.mark.exact_times
def test_a_version_that_is_gone_parks(clock, work):
    mine = sleeper()

    def deploy():
        sleeper(version=2)
        definitions.unregister(mine)

    found = park_and_resume(clock, work, deploy, sleeper)
    assert "version '1'" in found.error
    assert "Keep the old class" in found.error


@pytest.mark.exact_times
def test_a_step_that_is_gone_parks(clock, work):
    sleeper()
    found = park_and_resume(clock, work, lambda: flow(lambda self: complete(), ende=lambda self: complete()), sleeper)
    assert "UnknownStepError" in found.error
    assert "Did you mean 'ende'" in found.error


@pytest.mark.exact_times
def test_a_context_that_no_longer_validates_parks(clock, work):
    class Stricter(BaseModel):
        n: int
        added: str

    sleeper()
    found = park_and_resume(clock, work, lambda: sleeper(context=Stricter), sleeper)
    assert "ContextError" in found.error
    assert "added" in found.error


def test_a_context_that_grew_a_default_goes_on(clock, work):
    class Wider(BaseModel):
        n: int = 0
        added: str = "new"

    sleeper()
    run(work)
    sleeper(context=Wider)
    clock.tick(HOUR)
    work()
    expected = {"n": 0, "added": "new", "text": "", "number": 0.0, "items": []}  # what it does not know it hands on
    assert (the_run().status, the_run().data) == ("completed", expected)


# -- engine ------------------------------------------------------------------------------------------------------------


def test_starting_what_does_not_exist_names_the_nearest():
    flow(lambda self: complete(), "reindex")
    with pytest.raises(UnknownWorkflowError, match="Did you mean 'reindex'"):
        engine.start("reindx")
    with pytest.raises(ValueError, match="not a workflow"):
        engine.start(dict)


def test_starting_with_arguments_that_do_not_fit_leaves_nothing():
    flow(lambda self: complete())
    with pytest.raises(ValidationError):
        engine.start("flow", n="many")
    with pytest.raises(NotStorableError, match="number"):
        engine.start("flow", number=float("nan"))
    assert not WorkflowRun.objects.exists()


def test_a_start_that_is_rolled_back_is_no_start(work):
    flow(lambda self: complete())
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        engine.start("flow")
        raise ZeroDivisionError
    assert not WorkflowRun.objects.exists()


def test_what_a_step_starts_and_then_fails_was_not_started(work):
    flow(lambda self: complete(), "other", version=2)

    def first(self):
        engine.start("other")
        raise ValueError

    flow(first, retry=ONCE)
    assert run(work).status == "failed"
    assert not WorkflowRun.objects.filter(name="other").exists()


def test_create_context_without_event_and_context_without_create_context(work):

    @event_workflow("reservation_confirmed", name="by default")
    class ByDefault:
        class Context(BaseModel):
            entity_id: int
            more: str = ""

        @step(start=True)
        def first(self):
            leave(self.context.entity_id)
            return complete()

    stay = Reservation.objects.create(status="confirmed")
    work()
    assert effects() == [str(stay.pk)]


def test_create_context_that_returns_something_else_is_named(work):
    @workflow("wrong")
    class Wrong:
        class Context(BaseModel):
            pass

        @classmethod
        def create_context(cls):
            return {}

        @step(start=True)
        def first(self):
            return complete()

    with pytest.raises(ValueError, match="must return a"):
        engine.start("wrong")


def test_cancelling_ends_a_run_wherever_it_rests(clock, work):
    flow(lambda self: sleep(HOUR), "asleep")
    flow(lambda self: wait("x"), "waiting", version=2)
    flow(lambda self: complete(), "fresh", version=3)
    for found in (run(work, "asleep"), run(work, "waiting"), engine.start("fresh")):
        assert engine.cancel(found, "not needed") is True
        assert (found.status, found.error, found.wake_at) == ("cancelled", "not needed", None)
        assert engine.cancel(found.pk) is False
    clock.tick(2 * HOUR)
    engine.signal("x")
    work()
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"cancelled"}


@pytest.mark.parametrize("atomic", [True, False])
def test_a_step_that_cancels_its_own_run_ends_it(atomic, clock, work):
    @step(atomic=atomic)
    def second(self):
        engine.cancel(get_run().pk, "in the middle")
        return goto(self.third)

    def third(self):
        leave("third")
        return complete()

    flow(lambda self: goto(self.second), second=second, third=third)
    run(work)
    for _ in range(5):
        clock.tick(timedelta(seconds=11))
        work()
    assert (the_run().status, the_run().error) == ("cancelled", "in the middle")
    assert effects() == []


def test_cancelling_from_elsewhere_during_an_atomic_step_drops_its_writes(work, monkeypatch):
    """Another process cancels while a worker has the run: done here just before its transaction begins."""
    from django_ai.automation.queues import attempt as attempt_module

    flow(lambda self: [leave("lost"), goto(self.second)][1], second=lambda self: complete())
    started = engine.start("flow")
    real = attempt_module.keep_lease_for

    def cancel_first(timeout):
        engine.cancel(started.pk, "from elsewhere")
        real(timeout)

    monkeypatch.setattr(attempt_module, "keep_lease_for", cancel_first)
    work()
    started.refresh_from_db()
    assert (started.status, started.error, effects()) == ("cancelled", "from elsewhere", [])
    assert started.steps.count() == 0


def test_resuming_a_failed_run_tries_its_last_step_again(work):
    def second(self):
        if not self.context.n:
            return fail("not yet")
        leave("second")
        return complete()

    flow(lambda self: [leave("first"), goto(self.second)][1], second=second)
    found = run(work)
    assert found.status == "failed"
    WorkflowRun.objects.filter(pk=found.pk).update(data={**found.data, "n": 1})
    engine.resume(found.pk)
    work()
    found.refresh_from_db()
    assert (found.status, found.error, effects()) == ("completed", "", ["first", "second"])
    with pytest.raises(NotResumableError, match="completed"):
        engine.resume(found)


def test_runs_of_one_event_are_one_each(work):
    @event_workflow("reservation_confirmed", name="one each")
    class OneEach:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def first(self):
            leave(self.context.entity_id)
            return complete()

    stays = [Reservation.objects.create(status="confirmed") for _ in range(3)]
    work()
    for stay in stays:
        stay.save()
    work()
    assert effects() == [str(stay.pk) for stay in stays]


# -- contexts ----------------------------------------------------------------------------------------------------------


def test_rich_types_come_back(clock, work):
    import datetime as dt
    import uuid
    from decimal import Decimal
    from enum import Enum

    class Colour(Enum):
        RED = "red"

    class Inner(BaseModel):
        when: dt.date

    class Context(BaseModel):
        at: dt.datetime
        price: Decimal
        key: uuid.UUID
        colour: Colour
        inner: Inner
        pairs: dict[int, tuple[int, str]]
        tags: set[str]
        span: timedelta
        raw: bytes
        aliased: int = Field(0, alias="Aliased")

    values = {
        "at": clock(),
        "price": Decimal("10.50"),
        "key": uuid.UUID(int=5),
        "colour": Colour.RED,
        "inner": Inner(when=dt.date(2030, 1, 1)),
        "pairs": {1: (2, "x")},
        "tags": {"a"},
        "span": HOUR,
        "raw": b"abc",
        "Aliased": 7,
    }

    def end(self):
        expected = Context(**values)
        assert self.context == expected, (self.context, expected)
        return complete()

    flow(lambda self: sleep(HOUR, then=self.end), context=Context, end=end, retry=ONCE)
    run(work, **values)
    clock.tick(HOUR)
    work()
    assert (the_run().status, the_run().error) == ("completed", "")


def test_a_field_set_to_another_type_is_taken_where_it_validates(work):
    def first(self):
        self.context.n = "5"
        return complete()

    flow(first)
    found = run(work)
    assert (found.status, found.data["n"]) == ("completed", 5)


def test_a_field_set_to_nonsense_fails_and_is_named(work):
    def first(self):
        self.context.n = "many"
        return complete()

    flow(first, retry=ONCE)
    found = run(work)
    assert found.status == "failed"
    assert "n" in found.error
    assert "many" in found.error


def test_history_keeps_why_a_step_was_entered(clock, work):
    def first(self):
        return {
            "first": lambda: sleep(HOUR),
            "timer": lambda: wait("x", timeout=HOUR),
            "timeout": lambda: wait("x"),
            "signal": complete,
        }[get_wake().reason]()

    flow(first)
    found = run(work)
    for _ in range(2):
        clock.tick(HOUR)
        work()
    engine.signal("x")
    work()
    assert list(found.steps.values_list("wake_reason", "outcome")) == [
        ("first", "sleep"),
        ("timer", "wait"),
        ("timeout", "wait"),
        ("signal", "complete"),
    ]
