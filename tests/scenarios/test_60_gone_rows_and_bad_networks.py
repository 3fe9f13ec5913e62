"""Scenario 60: deleted runs, steps that close their connection, and signal receivers that raise.

A call for a deleted run has a clear result, the step spends an attempt, and the receiver delays nothing.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, step, wait, workflow
from django_ai.automation.exceptions import NotResumableError, UnknownRunError
from django_ai.automation.queues.signals import attempt_finished, row_failed, row_parked
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Effect

# -- runs that were removed --------------------------------------------------------------------------------------------


@pytest.fixture
def gone() -> WorkflowRun:
    """Return the instance of a run whose row was deleted."""

    @workflow("gone")
    class Gone:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return wait("bell", then=self.second)

        @step()
        def second(self):
            return complete()

    run = engine.start("gone")
    WorkflowRun.objects.filter(pk=run.pk).delete()
    return run


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("by_key", [True, False])
def test_60_a_signal_to_a_run_that_was_removed_leaves_the_callers_transaction_alone(gone, by_key):
    with transaction.atomic():
        Effect.objects.create(name="before")
        with pytest.raises(UnknownRunError, match=f"#{gone.pk}.*removed"):
            engine.signal("bell", run=gone.pk if by_key else gone)
        Effect.objects.create(name="after")
    assert Effect.objects.count() == 2
    assert not Signal.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("by_key", [True, False])
def test_60_a_run_that_was_removed_cannot_be_cancelled(gone, by_key):
    assert engine.cancel(gone.pk if by_key else gone) is False


@pytest.mark.django_db
@pytest.mark.parametrize("by_key", [True, False])
@pytest.mark.parametrize("at_step", [None, "second"])
def test_60_a_run_that_was_removed_cannot_be_resumed(gone, by_key, at_step):
    with pytest.raises(UnknownRunError, match=str(gone.pk)):
        engine.resume(gone.pk if by_key else gone, step=at_step)


@pytest.mark.django_db
def test_60_a_stale_copy_of_a_run_says_what_the_run_is_now(gone):
    run = engine.start("gone")
    stale = WorkflowRun.objects.get(pk=run.pk)
    engine.cancel(run)
    with pytest.raises(NotResumableError, match="is cancelled"):
        stale.resume()


# -- connections that are closed, receivers that raise -----------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_60_a_step_that_closes_its_connection_spends_an_attempt(work):
    @workflow("closes", default_retry=Retry(max_attempts=2, base_delay=timedelta(0)))
    class Closes:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            Effect.objects.create(name="lost")
            connection.close()
            return complete()

    run = engine.start("closes")
    work()
    run.refresh_from_db()
    assert (run.status, run.losses, run.steps.count()) == ("failed", 0, 2)
    assert "closed its database connection" in run.error
    assert not Effect.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("signal", [attempt_finished, row_parked, row_failed], ids=["finished", "parked", "failed"])
def test_60_a_receiver_that_raises_delays_nothing(work, signal):
    def broken(sender, **kwargs):
        raise RuntimeError("the metrics are down")

    @workflow("quiet", default_retry=Retry(max_attempts=1))
    class Quiet:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if signal is row_failed:
                raise LookupError
            return complete()

    signal.connect(broken)
    try:
        run = engine.start("quiet")
        if signal is row_parked:
            WorkflowRun.objects.filter(pk=run.pk).update(name="nobody has it")
        work()
    finally:
        signal.disconnect(broken)
    run.refresh_from_db()
    wanted = {attempt_finished: "completed", row_parked: "parked", row_failed: "failed"}[signal]
    assert (run.status, run.lease, run.losses) == (wanted, None, 0)
