"""``@on_fail`` and ``@on_cancel``: the path of a run to its end, in steps like all others."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from django_ai.automation.conf import conf
from django_ai.automation.exceptions import NotResumableError
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.signals import row_failed
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_run,
    get_wake,
    goto,
    idempotency_key,
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
)
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.choosing_runs import Fields, heard
from tests.support.rows import effects, history, leave, status, the_run
from tests.support.workflows import flow, hook, run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
ONCE, TWICE = Retry(max_attempts=1), Retry(max_attempts=2, base_delay=SECOND)


def failed_by(how):
    def first(self):
        self.context.n = 1
        if how == "raises":
            raise ValueError("boom")
        if how == "cancels itself":
            engine.cancel(get_run(), "boom")
            return complete()
        return fail("boom") if how == "fails" else None

    return first


# -- in steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"), [("raises", "ValueError: boom"), ("fails", "boom"), ("returns nothing", "return complete()`?")]
)
def test_a_failed_run_enters_its_path_and_ends_as_failed(how, said, work):
    def undo(self, error):
        leave(f"{error.splitlines()[-1][-20:]} {self.context.n}")
        self.context.text = "undone"
        return goto(self.more)

    def more(self):
        leave(f"more {self.context.text}")
        self.context.n += 1
        return complete(text="all undone")

    flow(failed_by(how), undo=hook(on_fail, undo), more=more, retry=ONCE)
    found = run(work)
    assert (found.status, found.current_step, found.ending) == ("failed", "first", None)
    assert said in found.error
    assert (found.data["n"], found.data["text"]) == (2, "all undone")
    assert effects() == [f"{found.error.splitlines()[-1][-20:]} 1", "more undone"]
    outcome = {"raises": "error", "fails": "fail"}.get(how, "error")
    assert history(found) == [("first", 1, outcome), ("undo", 1, "goto"), ("more", 1, "complete")]
    assert [each.error == "" for each in found.steps.order_by("pk")] == [False, True, True]
    assert (found.wake_at, found.lease) == (None, None)
    assert found.finished_at is not None


def test_a_cancelled_run_enters_its_path_and_ends_as_cancelled(work):
    def undo(self, error):
        leave(f"undo {error} {self.context.n}")
        return sleep(HOUR, then=self.more)

    flow(lambda self: wait("bell", HOUR), undo=hook(on_cancel, undo), more=lambda self: complete())
    found = run(work, n=4)
    assert engine.cancel(found, "not today") is True
    assert (found.status, found.finished_at, found.waits.count()) == ("running", None, 0)
    work()
    assert (status(found), effects(), found.error) == ("waiting", ["undo not today 4"], "not today")
    assert "(on the path of its @on_cancel)" in found.waits_for(timezone.now())
    work(timezone.now() + HOUR)
    assert (status(found), found.error, found.current_step) == ("cancelled", "not today", "first")


def test_a_run_that_cancels_itself_enters_its_path_with_the_commit_of_its_step(work):
    flow(failed_by("cancels itself"), undo=hook(on_cancel, lambda self, error: leave(f"{error} {self.context.n}")))
    found = run(work)
    assert (found.status, found.error, effects()) == ("cancelled", "boom", ["boom 1"])


def test_a_path_may_wait_and_start_children(clock, work):
    def undo(self, error):
        return wait_all(told=wait("told"), refunded=run_subflow("refund", n=5), then=self.last)

    def last(self):
        leave(f"{heard()} {get_wake().branches['refunded'].payload['data']['n']}")
        return wait_any(never=wait("never"), later=sleep(HOUR), then=self.done)

    flow(lambda self: complete(n=self.context.n * 2), "refund", version=2)
    flow(lambda self: fail("no"), undo=hook(on_fail, undo), last=last, done=lambda self: complete())
    found = run(work)
    engine.signal("told")
    work()
    clock.tick(HOUR)
    work()
    assert (status(found), found.error, effects()) == ("failed", "no", ["all refunded=signal told=signal 10"])
    assert not Wait.objects.exists()


def test_without_an_outcome_the_path_ends(work):
    flow(lambda self: fail("no"), undo=hook(on_fail, lambda self, error: leave("told")))
    found = run(work)
    assert (found.status, history(found)[-1]) == ("failed", ("undo", 1, "complete"))


def test_only_what_it_names_is_given_to_it(work):
    @on_fail
    def undo(self):
        leave(f"{self.context.n} {get_run().ending['error']} {get_wake().reason}")

    flow(lambda self: fail("no"), undo=undo)
    run(work, n=3)
    assert effects() == ["3 no first"]


def test_the_run_that_it_gets_is_its_own(work):
    @on_fail
    def undo(self, run):
        leave(f"{run.name} {run.pk == get_run().pk}")

    flow(lambda self: fail("no"), undo=undo)
    run(work)
    assert effects() == ["flow True"]


def test_a_run_that_completes_enters_no_path(work):
    flow(lambda self: complete(), one=hook(on_fail, lambda *_: leave("x")), two=hook(on_cancel, lambda *_: leave("x")))
    assert (run(work).status, effects()) == ("completed", [])


def test_each_end_has_its_own_path(work):
    def first(self):
        return fail("no") if self.context.n else wait("bell")

    flow(first, one=hook(on_fail, lambda *_: leave("failed")), two=hook(on_cancel, lambda *_: leave("cancelled")))
    run(work, n=1)
    engine.cancel(run(work))
    work()
    assert effects() == ["failed", "cancelled"]


def test_a_step_cannot_go_to_it(work):
    flow(lambda self: goto("undo"), undo=hook(on_cancel, lambda *_: leave("x")), retry=ONCE)
    found = run(work)
    assert "'undo' is its @on_cancel and no step" in found.error
    assert effects() == []


def test_a_path_without_a_context(work):
    """The Context could not be made: there is none for the path either, and nothing parks."""

    @event_workflow("reservation_confirmed", name="no context", default_retry=ONCE)
    class NoContext:
        Context = Fields

        @classmethod
        def create_context(cls, event):
            raise LookupError("no room")

        @step(start=True)
        def first(self):
            return complete()

        @on_fail
        def undo(self, error):
            leave(f"{self.context} {error.splitlines()[-1]}")

    Reservation.objects.create(status="confirmed")
    work()
    found = the_run(name="no context")
    assert (found.status, found.started_at, effects()) == ("failed", None, ["None LookupError: no room"])


# -- attempts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"retry": Retry(max_attempts=5, base_delay=SECOND)}], ids=["workflow's", "own"]
)
def test_it_is_retried_like_a_step(options, clock, work):
    most = options["retry"].max_attempts if options else 2

    def undo(self, error):
        leave("rolled back")
        self.context.n += 1
        if self.context.n < most:
            raise RuntimeError(f"try {self.context.n}")
        self.context.text = idempotency_key()

    flow(lambda self: fail("no"), undo=hook(on_fail, undo, **options), retry=TWICE)
    found = run(work)
    assert (found.status, found.attempt) == ("waiting", 1)
    assert "RuntimeError: try 1" in found.error
    assert "attempt 2" in found.waits_for(timezone.now())
    for _ in range(most):
        clock.tick(HOUR)
        work()
    assert (status(found), found.error, effects()) == ("failed", "no", ["rolled back"])
    assert (found.data["n"], [each for each in history(found) if each[0] == "undo"][-1]) == (
        most,
        ("undo", most, "complete"),
    )


def test_all_its_attempts_have_one_idempotency_key_which_no_other_step_has(clock, work):
    keys = []

    def first(self):
        keys.append(idempotency_key())
        raise RuntimeError

    def undo(self, error):
        keys.append(idempotency_key())
        if len(keys) < 3:
            raise RuntimeError
        return goto(self.more)

    def more(self):
        keys.append(idempotency_key())
        return complete()

    flow(first, undo=hook(on_fail, undo, retry=TWICE), more=more, retry=ONCE)
    found = run(work)
    clock.tick(HOUR)
    work()
    assert status(found) == "failed"
    one, two, three, four = keys
    assert two == three
    assert len({one, two, four}) == 3
    found.resume()  # the path had a step of its own, so the failed step is a new visit
    work()
    assert len(set(keys)) == len(keys) - 1


def test_a_step_that_is_resumed_after_a_path_of_one_step_keeps_its_idempotency_key(work):
    keys = []

    def first(self):
        keys.append(idempotency_key())
        if len(keys) < 4:
            raise RuntimeError
        return complete()

    flow(first, undo=hook(on_fail, lambda *_: keys.append(idempotency_key())), retry=ONCE)
    found = run(work)
    found.resume()
    work()
    found.resume()
    work()
    assert (status(found), len(keys)) == ("completed", 5)
    assert len({keys[0], keys[2], keys[4]}) == 1
    assert len({keys[0], keys[1], keys[3]}) == 3  # of two failures each path has its own


@pytest.mark.parametrize("where", ["undo", "more"])
@pytest.mark.parametrize("how", ["raises", "fails"])
def test_a_path_that_fails_leaves_both_errors(where, how, work):
    failures = []
    row_failed.connect(receiver := lambda row, reason, **_: failures.append((row.pk, reason)))
    broken = [True]

    def breaks(self, *_):
        if not broken:
            return complete()
        if how == "raises":
            raise LookupError("not undone")
        return fail("not undone")

    flow(
        lambda self: fail("no money"),
        undo=hook(on_fail, breaks if where == "undo" else lambda self, error: goto(self.more)),
        more=breaks,
        retry=ONCE,
    )
    found = run(work)
    row_failed.disconnect(receiver)
    assert (found.status, found.current_step) == ("failed", where)
    assert found.error.startswith("no money\n\nThen its @on_fail failed:\n\n")
    assert found.error.rstrip().endswith("not undone")
    assert failures == [(found.pk, found.error)]
    broken.clear()
    found.resume()
    assert found.status == "running"
    work()
    assert (status(found), found.error, found.ending, found.current_step) == ("failed", "no money", None, "first")


def test_a_cancelled_run_whose_path_fails_has_failed_and_can_continue_the_path_and_nothing_else(work):
    broken = [True]

    def undo(self, error):
        if broken:
            raise LookupError("not undone")
        leave("undone")

    flow(lambda self: wait("bell"), undo=hook(on_cancel, undo), retry=ONCE)
    failures = []
    row_failed.connect(receiver := lambda row, reason, **_: failures.append((row.pk, reason)))
    found = run(work)
    engine.cancel(found, "not today")
    work()
    row_failed.disconnect(receiver)
    assert (status(found), found.path, found.current_step) == ("failed", "@on_cancel", "undo")
    assert found.error.startswith("not today\n\nThen its @on_cancel failed:")
    assert failures == [(found.pk, found.error)]
    broken.clear()
    with pytest.raises(NotResumableError, match="only the path of its @on_cancel can be resumed"):
        engine.resume(found, "first")
    engine.resume(found)
    work()
    assert (status(found), found.error, effects()) == ("cancelled", "not today", ["undone"])
    with pytest.raises(NotResumableError, match="only a parked or failed run"):
        found.resume()


def test_the_path_of_a_poisonous_step_is_parked_and_continues(clock, work):
    flow(lambda self: fail("no"), undo=hook(on_fail, lambda *_: leave("undone")))
    found = engine.start("flow")
    work_one_step(found)
    for _ in range(conf().MAX_LOSSES):
        claim(WorkflowRun, timezone.now(), 10)
        clock.tick(HOUR)
    work()
    assert (status(found), effects()) == ("parked", [])
    assert found.ending["error"] == "no"
    found.resume()
    work()
    assert (status(found), found.error, effects()) == ("failed", "no", ["undone"])


def work_one_step(found: WorkflowRun) -> None:
    """Let the run fail, and stop before its path is entered."""
    (row,) = claim(WorkflowRun, timezone.now(), 1)
    row.perform(timezone.now)
    assert status(found) == "running"
    assert found.ending is not None


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_failed_run_is_resumed_at_the_step_that_failed_with_what_had_woken_it(work):
    broken = [True]

    def after(self):
        leave(f"{get_wake().reason} {get_wake().branch} {get_wake().payload.get('n')}")
        if broken:
            raise RuntimeError
        return complete()

    def undo(self, error):
        return wait("undone", then=self.more)

    flow(
        lambda self: wait_any(a=wait("a"), b=wait("b"), then=self.after),
        after=after,
        undo=hook(on_fail, undo),
        more=lambda self: complete(),
        retry=ONCE,
    )
    found = run(work)
    engine.signal("b", {"n": 6})
    engine.signal("undone")
    work()
    assert (status(found), found.current_step) == ("failed", "after")
    broken.clear()
    found.resume()
    work()
    assert (status(found), effects()) == ("completed", ["signal b 6"])


def test_a_failed_run_that_is_resumed_at_a_step_has_left_its_path(work):
    def undo(self, error):
        raise LookupError

    flow(lambda self: fail("no"), undo=hook(on_fail, undo), end=lambda self: complete(), retry=ONCE)
    found = run(work)
    engine.resume(found, "end")
    work()
    assert (status(found), found.error, found.ending) == ("completed", "", None)


def test_a_parked_run_that_is_resumed_at_a_step_stays_on_its_path(work):
    def undo(self, error):
        return wait("undone", then=self.more)

    flow(lambda self: fail("no"), undo=hook(on_fail, undo), more=lambda self: complete(), end=lambda self: complete())
    found = run(work)
    engine.signal("undone", {"n": "many"})
    work()
    assert status(found) == "parked"
    engine.resume(found, "end")
    work()
    assert (status(found), found.error) == ("failed", "no")
