"""``engine.try_now``: a run that waits for its next attempt makes it now."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation.exceptions import StateError, UnknownRunError
from django_ai.automation.values.retry import RetryAfter
from django_ai.automation.workflows.core import (
    Retry,
    Throttle,
    complete,
    engine,
    event_workflow,
    fail,
    sleep,
    step,
    wait,
    workflow,
)
from tests.apps.reservations.models import Reservation
from tests.support.rows import history, status, the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
SLOWLY = Retry(max_attempts=3, base_delay=HOUR)


def failing(self):
    raise ValueError("down")


def test_the_next_attempt_is_made_now_and_counts(work):
    flow(failing, retry=SLOWLY)
    found = run(work)
    assert (found.status, found.attempt) == ("waiting", 1)
    for attempts in (2, 3):
        found = engine.try_now(found, reason="It is up again.")
        work()
        found.refresh_from_db()
        assert found.attempt == attempts
    assert found.status == "failed"
    assert history(found)[1] == ("first", 0, "try_now")
    assert found.steps.filter(outcome="try_now").first().error == "Tried now instead of later: It is up again."
    assert [outcome for _, _, outcome in history(found)] == ["error", "try_now", "error", "try_now", "error"]


def test_a_retry_after_is_tried_now_and_costs_no_attempt(work):
    def first(self):
        if not self.context.n:
            self.context.n = 1
            raise RetryAfter(HOUR)
        return complete()

    flow(first)
    found = run(work)
    assert (found.status, found.attempt, found.deferrals) == ("waiting", 0, 1)
    engine.try_now(found.pk)
    work()
    found.refresh_from_db()
    assert (found.status, found.attempt) == ("completed", 0)


def test_an_evaluation_that_raised_is_repeated_now(work):
    broken = [True]

    def when(event):
        if broken:
            raise ValueError("no answer")
        return True

    @event_workflow("reservation_confirmed", name="asks", when=when)
    class Asks:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    Reservation.objects.create(status="confirmed")
    work()
    found = the_run(name="asks")
    assert (found.status, found.failed_evaluations) == ("waiting", 1)
    broken.clear()
    engine.try_now(found)
    work()
    found.refresh_from_db()
    assert found.status == "completed"


def test_a_run_that_is_due_already_stays_as_it_is(work):
    flow(failing, retry=SLOWLY)
    found = engine.try_now(run(work))
    assert engine.try_now(found).seq == found.seq
    assert found.steps.filter(outcome="try_now").count() == 1


def test_what_waits_for_something_else_is_refused_with_the_fix(work):
    flow(lambda self: sleep(HOUR), "asleep")
    flow(lambda self: wait("word"), "waiting", version=2)
    flow(lambda self: fail("no"), "failing", version=3)
    flow(lambda self: complete(), "fresh", version=4)
    for name, words in {
        "asleep": r"is waiting and waits for its timer.*engine\.skip_wait\(\)",
        "waiting": r"waits for the signal 'word'.*engine\.signal\(\)",
        "failing": r"has failed.*engine\.resume\(\)",
        "fresh": r"is completed.*engine\.fork\(\)",
    }.items():
        found = run(work, name)
        with pytest.raises(StateError, match=rf"^engine\.try_now\(\): {name} #{found.pk} {words}") as refused:
            engine.try_now(found)
        assert refused.value.row.pk == found.pk
        assert not found.steps.filter(outcome="try_now").exists()
    with pytest.raises(StateError, match=r"is running and waits for a worker.*needs no help"):
        engine.try_now(engine.start("fresh"))
    with pytest.raises(UnknownRunError, match="#999999"):
        engine.try_now(999999)


def test_a_paused_run_and_one_without_a_turn_are_refused(work):
    flow(failing, retry=SLOWLY)
    found = run(work)
    engine.pause(found)
    with pytest.raises(StateError, match=r"the end of the pause.*engine\.unpause\(\)"):
        engine.try_now(found)

    @workflow("narrow", throttle=Throttle(1, per=HOUR))
    class Narrow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    runs = [engine.start("narrow"), engine.start("narrow")]
    work()
    (second,) = [each for each in runs if status(each) != "completed"]
    for verb in (engine.try_now, engine.skip_wait):
        with pytest.raises(StateError, match=r"waits for its turn: .*Raise the limit"):
            verb(second)


def test_a_step_cannot_repair_its_own_run(work):
    def first(self):
        engine.try_now(self.context.n)
        return complete()

    flow(first, retry=Retry(max_attempts=1))
    started = engine.start("flow")
    started.data["n"] = started.pk
    started.save(update_fields=["data"])
    work()
    started.refresh_from_db()
    assert started.status == "failed"
    assert "StateError: engine.try_now(): run #" in started.error
