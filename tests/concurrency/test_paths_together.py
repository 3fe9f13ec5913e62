"""Cancellations, failures and workers at the same time: a run enters one path, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import transaction
from django.utils import timezone

from django_ai.automation import Retry, complete, engine, fail, goto, on_cancel, on_fail, run_subflow, wait
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.support.race import OtherThread, row_locks, together, together_with_workers, until_someone_waits
from tests.support.rows import effects, leave, status
from tests.support.workflows import flow, hook

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 10


def undoing(first) -> None:
    """Declare a workflow whose paths have two steps, each of which leaves an effect."""

    def undo(self, error):
        self.context.text = error
        leave(f"{self.context.n} undo {error}")
        return goto(self.more)

    def more(self):
        leave(f"{self.context.n} more {self.context.text}")
        return complete()

    flow(
        first,
        retry=Retry(max_attempts=1),
        cancelled=hook(on_cancel, undo),
        failed=hook(on_fail, undo),
        more=more,
    )


def cancelling(answers: list[bool], run: WorkflowRun, reason: str, **options: bool) -> Callable[[], None]:
    """Return a function that cancels the run, and keeps the answer."""
    return lambda: answers.append(engine.cancel(run.pk, reason, **options))


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["waits", "fails"])
def test_of_cancellations_and_failures_at_once_one_begins_its_path(ends):
    undoing(lambda self: fail("failed") if ends == "fails" else wait("bell"))
    for number in range(ROUNDS):
        run = engine.start("flow", n=number)
        if ends == "waits":
            drain()
        answers: list[bool] = []
        cancel = [cancelling(answers, run, f"no {each}") for each in range(3)]
        assert together_with_workers(*cancel, workers=2) == []
        drain()
        assert (status(run), run.ending) == ("cancelled" if True in answers else "failed", None)
        assert answers.count(True) == (run.status == "cancelled")
        assert effects()[2 * number :] == [f"{number} undo {run.error}", f"{number} more {run.error}"]


@pytest.mark.slow
def test_a_path_that_ends_and_a_cancellation_at_once_have_one_end():
    undoing(lambda self: fail("failed"))
    for number in range(ROUNDS):
        run = engine.start("flow", n=number)
        answers: list[bool] = []
        cancel = cancelling(answers, run, "now", at_once=True)
        assert together_with_workers(cancel, workers=2) == []
        drain()
        left = len([each for each in effects() if each.startswith(f"{number} ")])
        match answers, status(run):
            case [True], "cancelled":  # before it could fail
                assert (run.error, left) == ("now", 0)
            case [True], "failed":  # on its path
                assert run.error == "failed\n\nThen its @on_fail was ended at once:\n\nnow"
                assert left < 2
            case [False], "failed":
                assert (run.error, left) == ("failed", 2)
            case other:
                raise AssertionError(other)


@row_locks
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_cancellation_waits_for_another_one(ends):
    undoing(lambda self: wait("bell"))
    run = engine.start("flow")
    drain()
    try:
        with transaction.atomic():
            assert engine.cancel(run.pk, "first")
            other = OtherThread(lambda: engine.cancel(run.pk, "second"))
            until_someone_waits()
            if ends == "rollback":
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert other.join() is (ends == "rollback")
    drain()
    error = "first" if ends == "commit" else "second"
    assert (status(run), run.error) == ("cancelled", error)
    assert effects() == [f"0 undo {error}", f"0 more {error}"]


@row_locks
def test_a_cancellation_waits_for_a_failure_that_is_committing():
    undoing(lambda self: fail("failed"))
    run = engine.start("flow")
    with transaction.atomic():
        (row,) = WorkflowRun.objects.select_for_update().filter(pk=run.pk)
        other = OtherThread(lambda: engine.cancel(run.pk, "no"))
        until_someone_waits()
        row.lease, row.wake_at = "mine", timezone.now()
        row.save(update_fields=["lease", "wake_at"])
        row.perform(timezone.now)
    assert other.join() is False
    drain()
    assert (status(run), run.error) == ("failed", "failed")
    assert StepExecution.objects.filter(step="cancelled").count() == 0


@pytest.mark.slow
def test_cancellations_of_a_family_at_once_end_each_member_once():
    flow(lambda self: wait("bell"), "child", version=2, undo=hook(on_cancel, lambda *_: leave("child")))
    flow(lambda self: run_subflow("child"), "parent", undo=hook(on_cancel, lambda *_: leave("parent")))
    for number in range(ROUNDS):
        parent = engine.start("parent")
        drain()
        child = WorkflowRun.objects.get(parent=parent)
        both = [lambda pk=pk: engine.cancel(pk) for pk in (parent.pk, child.pk)]
        assert together(*both) == []
        drain()
        assert (status(parent), status(child)) == ("cancelled", "cancelled")
        assert sorted(effects()) == ["child"] * (number + 1) + ["parent"] * (number + 1)
