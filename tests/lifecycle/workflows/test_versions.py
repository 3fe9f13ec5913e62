"""Versions side by side, and code that a deployment has removed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.core import complete, engine, goto, sleep
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.rows import effects, leave, the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


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
    """After ``break_it`` a sleeping run parks, and after ``mend_it`` it resumes; another run is not affected."""
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
    expected = {"n": 0, "added": "new", "text": "", "number": 0.0, "items": []}  # unknown fields are kept
    assert (the_run().status, the_run().data) == ("completed", expected)
