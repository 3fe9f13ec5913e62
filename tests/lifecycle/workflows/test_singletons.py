"""``singleton=`` of workflows: at most one unfinished run."""

from __future__ import annotations

import pytest

from django_ai.automation import RateLimit, Singleton, engine
from django_ai.automation.conf import conf
from django_ai.automation.queues.claim import claim_rows
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.limits import HOUR, MINUTE, limited, slots, start, statuses
from tests.support.rows import effects, status

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_second_run_is_skipped_and_says_so(clock, work):
    limited(singleton=Singleton())
    first, second = start("a", "b", do="sleep")
    work()
    assert statuses() == ["waiting", "cancelled"]
    second.refresh_from_db()
    assert second.error == (
        f"Skipped: workflow run #{first.pk} has not ended, and singleton=Singleton(key=None, on_conflict='skip')."
    )
    clock.tick(MINUTE)
    work()
    start("c")
    work()
    assert effects() == ["begin a", "end a", "begin c", "end c"]
    assert slots() == {}


def test_each_value_of_the_key_has_its_own_run(clock, work):
    limited(singleton=Singleton("{{ ctx.group }}"))
    start("a", group="x", do="sleep")
    start("b", group="y", do="sleep")
    start("c", group="x", do="sleep")
    work()
    assert statuses() == ["waiting", "waiting", "cancelled"]


def test_queue_lets_the_next_run_begin_when_the_first_has_ended(clock, work):
    limited(singleton=Singleton(on_conflict="queue"))
    start("a", "b", do="sleep")
    work()
    (waiting,) = [run for run in WorkflowRun.objects.all() if run.wake_at is None]
    assert waiting.waits_for(clock.now) == "a slot of the limit 'singleton' of workflow limited"
    for _ in range(2):
        clock.tick(MINUTE)
        work()
    assert effects() == ["begin a", "end a", "begin b", "end b"]


def test_cancel_running_cancels_the_other_run(clock, work):
    limited(singleton=Singleton(on_conflict="cancel_running"))
    (first,) = start("a", do="sleep")
    work()
    (second,) = start("b")
    work()
    first.refresh_from_db()
    assert (first.status, status(second)) == ("cancelled", "completed")
    assert first.error == (
        f"Superseded by workflow run #{second.pk}: singleton=Singleton(key=None, on_conflict='cancel_running')."
    )
    assert effects() == ["begin a", "begin b", "end b"]


def test_cancel_running_waits_until_the_code_of_the_other_run_has_ended(clock, work):
    limited(singleton=Singleton(on_conflict="cancel_running"))
    (first,) = start("a", do="sleep")
    work()
    clock.tick(MINUTE)
    claim_rows(WorkflowRun, [first.pk], clock.now)
    (second,) = start("b")
    work()
    assert (status(first), status(second), effects()) == ("cancelled", "waiting", ["begin a"])
    clock.tick(conf().LEASE)
    work()
    assert (status(second), effects()) == ("completed", ["begin a", "begin b", "end b"])


def test_an_older_run_never_cancels_a_newer_one(clock, work):
    limited(singleton=Singleton(on_conflict="cancel_running"))
    (first,) = start("a", do="sleep")
    WorkflowRun.objects.filter(pk=first.pk).update(wake_at=clock.now + MINUTE)
    (second,) = start("b", do="sleep")
    work()
    clock.tick(MINUTE)
    work()
    assert (status(first), status(second)) == ("cancelled", "completed")
    assert effects() == ["begin b", "end b"]


def test_only_the_newest_of_several_runs_is_left(clock, work):
    limited(singleton=Singleton(on_conflict="cancel_running"))
    start(*"abc", do="sleep")
    work()
    assert statuses() == ["cancelled", "cancelled", "waiting"]


def test_a_parked_run_is_still_the_only_one(clock, work):
    limited(singleton=Singleton())
    (first,) = start("a", do="sleep")
    work()
    clock.tick(MINUTE)
    (row,) = claim_rows(WorkflowRun, [first.pk], clock.now)
    row.park("an operator must look", lambda: clock.now)
    (second,) = start("b")
    work()
    assert (status(first), status(second)) == ("parked", "cancelled")
    engine.resume(first)
    work()
    assert (status(first), slots()) == ("completed", {})


def test_a_failed_run_that_is_resumed_waits_for_the_one_that_runs(clock, work):
    """It has started, so a conflict must not end it."""
    limited(singleton=Singleton())
    (first,) = start("a", do="fail")
    for _ in range(3):
        work()
        clock.tick(MINUTE)
    assert status(first) == "failed"
    (second,) = start("b", do="sleep")
    work()
    WorkflowRun.objects.filter(pk=first.pk).update(data={"name": "a", "do": "", "key": ""})
    engine.resume(first)
    work()
    assert (status(first), status(second)) == ("waiting", "waiting")
    clock.tick(MINUTE)
    work()
    assert (status(first), status(second)) == ("completed", "completed")


def test_a_run_that_was_started_before_the_limit_was_declared_is_not_ended(clock, work):
    limited()
    start("a", "b", do="sleep")
    work()
    limited(singleton=Singleton())
    clock.tick(MINUTE)
    work()
    assert statuses() == ["completed", "completed"]


def test_a_skipped_run_gives_back_what_it_has_acquired_before(clock, work):
    limited(singleton=Singleton(), rate_limit=RateLimit(3, per=HOUR))
    start("a", "b", do="sleep")
    work()
    assert slots() == {"held": 3}  # the singleton, and two counted starts
    clock.tick(MINUTE)
    work()
    assert slots() == {"held": 2}
