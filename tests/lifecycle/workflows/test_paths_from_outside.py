"""What others see of a run on its path: it is unfinished for its callers, keys, schedules, health and retention."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from django_ai.automation import Debounce, schedule
from django_ai.automation.conf import conf
from django_ai.automation.events.models import Schedule
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.exceptions import (
    RunCancelledError,
    RunExistsError,
    RunFailedError,
    RunTimeoutError,
    RunUnfinishedError,
)
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.queues.signals import row_failed
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_run,
    goto,
    on_cancel,
    on_fail,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from django_ai.automation.workflows.retention import prune_history, prune_runs
from tests.apps.reservations.models import Reservation
from tests.support.choosing_runs import Fields
from tests.support.marks import not_on
from tests.support.race import elsewhere
from tests.support.rows import effects, history, leave, status, the_run
from tests.support.workflows import flow, hook, run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
ONCE = Retry(max_attempts=1)


def careful(**options: Any) -> None:
    """Declare a workflow that waits, and undoes its work for an hour when it is cancelled or fails."""

    def first(self):
        return fail("no") if self.context.n else wait("bell")

    def undo(self, error):
        return sleep(HOUR, then=self.last)

    def last(self):
        leave(f"undone {self.context.text}")
        return complete()

    flow(first, cancelled=hook(on_cancel, undo), failed=hook(on_fail, undo), last=last, **options)


# -- callers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "error"), [(0, RunCancelledError), (1, RunFailedError)])
def test_a_caller_waits_for_the_end_of_the_path(n, error):
    careful()
    with time_machine("2030-01-07T12:00+01:00", raise_errors=True) as machine:
        found = engine.start("flow", n=n)
        machine.process()
        if not n:
            engine.cancel(found, "no")
        machine.process()
        with pytest.raises(RunUnfinishedError, match=r"it is waiting and waits for its timer.*on the path of its @on_"):
            found.result()
        assert list(engine.runs("flow").unfinished()) == [found]
        with pytest.raises(RunTimeoutError, match="has not ended within"):
            found.wait(timedelta(minutes=5))
        assert found.wait(HOUR).is_finished
        with pytest.raises(error, match=r": no$"):
            found.result()


def test_a_key_is_taken_while_its_run_is_on_its_path(clock, work):
    careful()
    old = engine.start("flow", key="12", text="old")
    work()
    engine.cancel(old)
    work()
    assert engine.start("flow", key="12") == old
    with pytest.raises(RunExistsError, match="is waiting"):
        engine.start("flow", key="12", if_exists="raise")
    new = engine.start("flow", key="12", text="new", if_exists="restart")
    work()
    assert new != old
    assert engine.runs("flow", key="12").get() == new
    assert (status(old), status(new)) == ("waiting", "suspended")
    newest = engine.start("flow", key="12", if_exists="restart")
    for _ in range(2):
        work()
        clock.tick(HOUR)
    assert sorted(effects()) == ["undone new", "undone old"]
    assert [status(each) for each in (old, new, newest)] == ["cancelled", "cancelled", "suspended"]


@pytest.mark.parametrize(("overlap", "started"), [("skip", 1), ("queue", 1), ("allow", 3)])
def test_a_schedule_waits_for_the_end_of_the_path(clock, work, overlap, started):
    @schedule("0 * * * *", overlap=overlap)
    @workflow("hourly")
    class Hourly:
        Context = Fields

        @step(start=True)
        def first(self):
            return fail("no")

        @on_fail
        def undo(self):
            return sleep(timedelta(hours=2, minutes=30), then=self.last)

        @step()
        def last(self):
            return complete()

    ensure_rows(clock())
    first = Schedule.objects.get().wake_at
    for hours in range(3):
        clock.now = first + hours * HOUR
        work()
    assert WorkflowRun.objects.count() == started
    clock.now = first + timedelta(hours=2, minutes=30)
    work()
    assert WorkflowRun.objects.order_by("pk").first().status == "failed"
    clock.now = first + 3 * HOUR
    work()
    assert WorkflowRun.objects.count() > started


def test_health_says_what_a_path_waits_for(clock, work):
    careful()
    found = run(work, n=1)
    assert [each.waits_for for each in explain(clock.now, ["workflow run"])] == [
        "its timer, 2030-01-07 14:00:00 (on the path of its @on_fail)"
    ]
    assert found.path == "@on_fail"


# -- cancellation ------------------------------------------------------------------------------------------------------


def test_a_path_that_is_retried_is_not_cancelled(clock, work):
    def undo(self, error):
        self.context.n += 1
        if self.context.n < 3:
            raise RuntimeError("not yet")
        leave("undone")

    retry = Retry(max_attempts=3, base_delay=HOUR, backoff_factor=1)
    flow(lambda self: wait("bell"), undo=hook(on_cancel, undo, retry=retry))
    found = run(work)
    engine.cancel(found, "first")
    for _ in range(2):
        work()
        found.refresh_from_db()
        before = (found.status, found.wake_at, found.seq, found.attempt)
        assert engine.cancel(found, "second") is False
        assert (found.status, found.wake_at, found.seq, found.attempt) == before
        clock.tick(HOUR)
    work()
    assert (status(found), found.error, effects()) == ("cancelled", "first", ["undone"])


@pytest.mark.parametrize("at_once", [False, True])
def test_a_path_that_cancels_its_own_run_continues_unless_at_once(work, at_once):
    def undo(self, error):
        leave(engine.cancel(get_run(), "own", at_once=at_once))
        return goto(self.last)

    def last(self):
        leave(f"last {engine.cancel(get_run())}")
        return complete()

    flow(lambda self: wait("bell"), undo=hook(on_cancel, undo), last=last)
    found = run(work)
    engine.cancel(found, "first")
    work()
    if at_once:
        both = "first\n\nThen its @on_cancel was ended at once:\n\nown"
        assert (status(found), found.error, effects()) == ("cancelled", both, ["True"])
    else:
        assert (status(found), found.error, effects()) == ("cancelled", "first", ["False", "last False"])


@not_on("sqlite", reason="SQLite has one writer")
@pytest.mark.parametrize("at_once", [False, True])
def test_a_cancellation_while_the_method_runs(work, at_once):
    answers = []

    def undo(self, error):
        leave("undo")
        pk = get_run().pk
        elsewhere(lambda: answers.append(engine.cancel(pk, "second", at_once=at_once)))

    flow(lambda self: wait("bell"), undo=hook(on_cancel, undo))
    found = run(work)
    engine.cancel(found, "first")
    work()
    assert (status(found), answers) == ("cancelled", [at_once])
    assert (found.error == "first", effects()) == (not at_once, [] if at_once else ["undo"])


def test_a_path_that_cannot_continue_is_announced(work):
    @event_workflow("reservation_confirmed", name="hosting")
    class Hosting:
        Context = Fields

        @step(start=True)
        def first(self):
            return fail("no")

        @on_fail
        def undo(self):
            return wait_for_event("checkout_due", then="end")

        @step()
        def end(self):
            return complete()

    heard: list[Any] = []
    row_failed.connect(listen := lambda row, reason, **_: heard.append((row.pk, row.status, row.error, reason)))
    stay = Reservation.objects.create(status="confirmed")
    work()
    assert heard == []
    stay.delete()
    work()
    row_failed.disconnect(listen)
    found = the_run(name="hosting")
    assert found.error.startswith("no\n\nThen its @on_fail failed:")
    assert heard == [(found.pk, "failed", found.error, found.error)]


@pytest.mark.parametrize(("n", "ended"), [(0, "cancelled"), (1, "failed")])
def test_a_path_that_is_ended_at_once_announces_only_that_its_run_has_failed(work, n, ended):
    careful()
    found = run(work, n=n)
    if not n:
        engine.cancel(found, "no")
        work()
    heard: list[Any] = []
    row_failed.connect(listen := lambda row, reason, **_: heard.append((row.pk, row.status, reason)))
    engine.cancel(found, "now", at_once=True)
    row_failed.disconnect(listen)
    both = f"no\n\nThen its {found.path} was ended at once:\n\nnow"
    assert (status(found), found.error) == (ended, both)
    assert heard == ([(found.pk, "failed", both)] if n else [])
    assert found.error_summary == f"no (then its {found.path} was ended at once: now)"


# -- code and retention ------------------------------------------------------------------------------------------------


def test_a_path_whose_method_was_removed_is_parked_until_it_is_back(clock, work):
    def undo(self, error):
        raise RuntimeError("not yet")

    flow(lambda self: fail("no"), undo=hook(on_fail, undo))
    found = run(work)
    assert found.status == "waiting"
    flow(lambda self: fail("no"), version=1)
    clock.tick(HOUR)
    work()
    assert status(found) == "parked"
    assert "no step 'undo'" in found.error
    flow(lambda self: fail("no"), undo=hook(on_fail, lambda *_: leave("undone")))
    clock.tick(HOUR)
    work()
    assert (status(found), found.error, effects()) == ("failed", "no", ["undone"])


def test_a_parked_path_is_cancelled_at_once_only(clock, work):
    def undo(self, error):
        raise RuntimeError("not yet")

    flow(lambda self: fail("no"), undo=hook(on_fail, undo))
    found = run(work)
    flow(lambda self: fail("no"), version=1)
    clock.tick(HOUR)
    work()
    assert (status(found), engine.cancel(found)) == ("parked", False)
    assert engine.cancel(found, "given up", at_once=True) is True
    assert (found.status, found.error) == ("failed", "no\n\nThen its @on_fail was ended at once:\n\ngiven up")


def test_a_path_without_a_context_does_not_need_the_code_that_collects_its_events(clock, work):
    def declare(**options: Any) -> None:
        @event_workflow("reservation_confirmed", name="collects", default_retry=ONCE, **options)
        class Collects:
            Context = Fields

            @classmethod
            def create_context(cls, events=None, event=None):
                raise LookupError("no room")

            @step(start=True)
            def first(self):
                return complete()

            @on_fail(retry=Retry(max_attempts=2, base_delay=HOUR))
            def undo(self, error):
                leave(f"{self.context} {error.splitlines()[-1]}")
                if "debounce" in options:
                    raise RuntimeError("not yet")

    declare(debounce=Debounce(SECOND))
    Reservation.objects.create(status="confirmed")
    clock.tick(SECOND)
    work()
    found = the_run(name="collects")
    assert (found.status, found.path, effects()) == ("waiting", "@on_fail", [])
    declare(when=lambda event: False)  # only asked when a run is to start
    clock.tick(HOUR)
    work()
    assert (status(found), effects()) == ("failed", ["None LookupError: no room"])


def test_retention_leaves_a_run_on_its_path_and_the_history_of_a_broken_one(clock, work):
    def undo(self, error):
        return sleep(90 * DAY, then=self.last)

    flow(lambda self: fail("no"), undo=hook(on_fail, undo), last=lambda self: complete())
    flow(lambda self: wait("bell"), "broken", version=2, retry=ONCE,
         undo=hook(on_cancel, lambda *_: fail("not undone")))  # fmt: skip
    found, broken = run(work), run(work, "broken")
    engine.cancel(broken)
    work()
    assert (status(broken), broken.ending is None) == ("failed", False)
    clock.tick(conf().retention("RUNS") + DAY)
    time_slice = TimeSlice(clock.now)
    before = len(history(broken))
    prune_history(time_slice)
    assert StepExecution.objects.filter(run=broken).count() == before
    prune_runs(time_slice)
    assert list(WorkflowRun.objects.all()) == [found]
