"""Subflows: a parent waits for its child and receives its result; cancelling a parent cancels its children."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation.workflows.core import Retry, complete, engine, fail, get_wake, run_subflow, wait
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.rows import effects, leave, the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

ONCE = Retry(max_attempts=1)


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
