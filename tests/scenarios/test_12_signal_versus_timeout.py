"""12, signal versus timeout at the same instant: whichever takes the run first decides the only branch that runs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import complete, engine, get_wake, step, wait, workflow
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows import delivery, runner
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.support.race import Behind, elsewhere, row_locks
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
to_whom = pytest.mark.parametrize("targeted", [False, True], ids=["broadcast", "inbox"])


@pytest.fixture
def run(clock):
    """Return a suspended run whose timeout is due now."""

    @workflow("patient")
    class Patient:
        class Context(BaseModel):
            word: str = ""

        @step(start=True)
        def listen(self):
            return wait("word", timeout=HOUR, then=self.heard, on_timeout=self.late)

        @step()
        def heard(self):
            leave(f"heard {get_wake().reason} {self.context.word}")
            return complete()

        @step()
        def late(self):
            leave(f"late {get_wake().reason}")
            return complete()

    started = engine.start("patient")
    drain()
    clock.tick(HOUR)
    started.refresh_from_db()
    assert (started.status, started.wake_at) == ("suspended", clock.now)
    return started


def sent(run: WorkflowRun, targeted: bool) -> Signal:
    """Return a signal that a worker has leased and not delivered yet."""
    engine.signal("word", {"word": "now"}, run=run if targeted else None)
    (signal,) = claim(Signal, timezone.now(), 1)
    return signal


def one_branch(run: WorkflowRun, effect: str) -> None:
    drain()
    drain(timezone.now() + timedelta(minutes=1))
    assert effects() == [effect]
    run.refresh_from_db()
    assert (run.status, run.steps.count()) == ("completed", 2)


@to_whom
def test_12_the_signal_is_delivered_first(run, targeted):
    delivery.deliver(sent(run, targeted), timezone.now)
    one_branch(run, "heard signal now")


@to_whom
def test_12_the_signal_comes_before_the_worker_that_has_the_run_has_looked(run, targeted):
    signal = sent(run, targeted)
    (taken,) = claim(WorkflowRun, timezone.now(), 1)
    delivery.deliver(signal, timezone.now)
    taken.perform(timezone.now)
    one_branch(run, "heard signal now")


@to_whom
def test_12_the_timeout_takes_the_run_first(run, targeted, monkeypatch):
    real = runner.is_there

    def looked(*arguments) -> bool:
        found = real(*arguments)
        delivery.deliver(sent(run, targeted), timezone.now)
        return found

    (taken,) = claim(WorkflowRun, timezone.now(), 1)
    monkeypatch.setattr(runner, "is_there", looked)
    taken.perform(timezone.now)
    monkeypatch.undo()
    one_branch(run, "late timeout")
    # Nothing has consumed the signal; a signal to one run is kept for that run.
    assert Signal.objects.get().consumed_at is None


@to_whom
def test_12_drained_at_once_the_signal_comes_first(run, targeted):
    engine.signal("word", {"word": "now"}, run=run if targeted else None)
    one_branch(run, "heard signal now")


@row_locks
@to_whom
def test_12_the_timeout_comes_while_the_signal_is_being_delivered(run, targeted):
    """The claim for the timeout skips a run that an uncommitted delivery has locked."""
    signal, taken = sent(run, targeted), []
    with transaction.atomic():
        delivery.deliver(signal, timezone.now)
        elsewhere(lambda: taken.extend(claim(WorkflowRun, timezone.now(), 1)))
    assert taken == []
    one_branch(run, "heard signal now")


@row_locks
@to_whom
def test_12_the_signal_comes_while_the_timeout_is_being_claimed(run, targeted):
    """The delivery waits for the uncommitted claim and finds the run leased; the worker then finds the signal."""
    signal = sent(run, targeted)
    with transaction.atomic():
        (taken,) = claim(WorkflowRun, timezone.now(), 1)
        behind = Behind(lambda: delivery.deliver(signal, timezone.now))
    behind.join()
    taken.perform(timezone.now)
    one_branch(run, "heard signal now")


@row_locks
@to_whom
def test_12_a_claim_that_is_rolled_back_leaves_the_run_to_the_signal(run, targeted):
    signal = sent(run, targeted)
    with transaction.atomic():
        claim(WorkflowRun, timezone.now(), 1)
        behind = Behind(lambda: delivery.deliver(signal, timezone.now))
        transaction.set_rollback(True)
    behind.join()
    one_branch(run, "heard signal now")
