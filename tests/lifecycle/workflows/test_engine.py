"""``engine``: start, cancel and resume runs, from outside and from a step."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel, ValidationError

from django_ai.automation.exceptions import NotResumableError, NotStorableError, UnknownWorkflowError
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_run,
    goto,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave, the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
ONCE = Retry(max_attempts=1)


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
    """Another process cancels the leased run just before the step's transaction begins: its writes are dropped."""
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
