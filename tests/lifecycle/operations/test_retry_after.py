"""``RetryAfter``: the same for steps, callbacks and handlers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    GiveUp,
    Retry,
    RetryAfter,
    agent,
    complete,
    engine,
    event_workflow,
    goto,
    handler,
    idempotency_key,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events import claims
from django_ai.automation.events.models import Event
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from django_ai.automation.queues.signals import attempt_finished, row_failed
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.front_desk import book
from tests.support.retries import STARTS, Nothing, Service, Tried, a_step
from tests.support.rows import change, effects, history, leave, status

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture(params=STARTS)
def tried(request) -> Callable[..., Tried]:
    """``tried(function, retry)``: start a step, callback or handler that calls ``function``."""
    return STARTS[request.param]


@pytest.mark.exact_times
def test_retry_after_retries_at_that_time_and_is_not_counted(tried, clock, work):
    noon = clock.now
    service = Service(clock, *(RetryAfter(30 * SECOND, "HTTP 429") for _ in range(4)), RetryAfter(noon + HOUR))
    found = tried(service, Retry(max_attempts=1))
    for number in range(1, 5):
        work()
        assert (found.row.attempt, found.row.deferrals, found.due_at) == (0, number, clock.now + 30 * SECOND)
        work(found.due_at - SECOND)
        assert len(service.times) == number
        clock.tick(30 * SECOND)
    work()
    assert found.due_at == noon + HOUR
    clock.now = noon + HOUR
    work()
    assert (found.row.status, found.row.attempt, found.row.deferrals, found.row.error) == (
        "completed",
        0 if found.model is WorkflowRun else 1,
        0,
        "",
    )
    assert [time - noon for time in service.times] == [*(n * 30 * SECOND for n in range(5)), HOUR]
    assert len(set(service.keys)) == 1
    assert effects() == ["asked"]  # what the other attempts wrote was rolled back


def test_retry_after_is_not_reported_as_a_failure(tried, clock, work):
    heard: list[Any] = []

    def listen(sender: Any, error: Exception | None = None, **kwargs: Any) -> None:
        heard.append(error)

    attempt_finished.connect(listen)
    row_failed.connect(listen)
    found = tried(Service(clock, RetryAfter(MINUTE, "HTTP 429")), Retry(max_attempts=1))
    try:
        work()
        work(found.due_at)
    finally:
        attempt_finished.disconnect(listen)
        row_failed.disconnect(listen)
    assert heard
    assert set(heard) == {None}


def test_a_counted_retry_after_fails_with_the_last_attempt(tried, clock, work):
    service = Service(clock, *(RetryAfter(MINUTE, "HTTP 429", counts=True) for _ in range(9)))
    found = tried(service, Retry(max_attempts=3, base_delay=HOUR, max_delay=HOUR))
    for _ in range(3):
        work()
        clock.tick(MINUTE)
    assert (found.row.status, found.row.attempt, found.row.deferrals) == ("failed", 3, 0)
    assert found.row.error.rstrip().endswith("RetryAfter: HTTP 429")
    assert len(service.times) == 3


def test_waits_for_counts_the_deferrals_in_a_row(tried, clock, work):
    found = tried(Service(clock, *(RetryAfter(timedelta(0), "HTTP 429") for _ in range(9))), Retry(max_attempts=1))
    kind = found.model._meta.verbose_name
    work()
    (reason,) = [each.waits_for for each in explain(clock.now, [kind])]
    assert reason.endswith("13:00:01, because its code raised RetryAfter: HTTP 429")
    assert work() == 0  # at least a second passes, so it does not occupy the worker
    for _ in range(2):
        clock.tick(SECOND)
        work()
    (reason,) = [each.waits_for for each in explain(clock.now, [kind])]
    assert reason.endswith("13:00:03, because its code raised RetryAfter 3 times in a row: HTTP 429")


def test_another_error_ends_the_series_and_is_counted(tried, clock, work):
    found = tried(Service(clock, RetryAfter(MINUTE), RetryAfter(MINUTE), ValueError("no"), ValueError("no")), Retry(2))
    for _ in range(3):
        work()
        clock.now = found.due_at
    assert (found.row.attempt, found.row.deferrals) == (1, 0)
    work()
    assert (found.row.status, found.row.attempt) == ("failed", 2)


def test_a_resumed_row_begins_a_new_series(tried, clock, work):
    found = tried(Service(clock, RetryAfter(MINUTE), GiveUp("no"), RetryAfter(MINUTE, "later")), Retry(1))
    work()
    work(found.due_at)
    found.model.objects.update(deferrals=5)  # as of a row that was parked between two attempts
    found.row.resume()
    assert (found.row.status in ("pending", "running"), found.row.deferrals, found.row.error) == (True, 0, "")
    work()
    assert (found.row.attempt, found.row.deferrals) == (0, 1)


@pytest.mark.parametrize(("pause", "is_broken"), [(MINUTE, True), (timedelta(0), True), (SECOND / 2, False)])
def test_a_pause_of_a_second_ends_the_chain_of_causes(tried, clock, work, pause, is_broken):
    """Without it, what answers each other with long pauses would count as an event storm."""
    service = Service(clock, RetryAfter(pause, counts=pause == SECOND / 2))
    found = tried(service, Retry(2))
    WorkflowRun.objects.update(depth=7)
    Event.objects.update(depth=7)
    work()
    clock.now = max(clock.now, found.due_at)
    work()
    first, second = service.depths
    assert first == 8
    assert second == (1 if is_broken else 8)


def test_the_changes_of_the_context_are_kept(clock, work):
    @workflow("keeps")
    class Keeps:
        class Context(BaseModel):
            pages: int = 0

        @step(start=True, retry=Retry(max_attempts=1))
        def read(self):
            self.context.pages += 1
            if self.context.pages < 3:
                raise RetryAfter(MINUTE)
            return complete()

    run = engine.start("keeps")
    for _ in range(3):
        work()
        clock.tick(MINUTE)
    assert (status(run), run.data) == ("completed", {"pages": 3})
    assert history(run) == [("read", 1, "retry_after"), ("read", 1, "retry_after"), ("read", 1, "complete")]


def test_the_context_of_an_event_workflow_may_not_be_there_yet(clock, work):
    """``create_context`` runs in the first attempt of the first step, so it may ask for a later one, too."""
    answers = [RetryAfter(MINUTE, "HTTP 429"), None]

    @event_workflow("booking_created", default_retry=Retry(max_attempts=1))
    class Answers:
        Context = Nothing

        @classmethod
        def create_context(cls, event):
            if error := answers.pop(0):
                raise error
            return cls.Context()

        @step(start=True)
        def begin(self):
            return complete()

    book()
    work()
    run = WorkflowRun.objects.get()
    assert (run.status, run.deferrals, run.started_at) == ("waiting", 1, None)
    work(clock.now + MINUTE)
    assert status(run) == "completed"


@pytest.mark.parametrize("error", [ValueError("no"), RetryAfter(SECOND, counts=True)])
def test_a_planned_run_that_cannot_make_its_context_fails_with_its_last_attempt(clock, work, error):
    """Each time, the condition of its event is evaluated again, which uses up no attempt and gives none back."""

    @event_workflow("checkin_due", offset=-HOUR, default_retry=Retry(max_attempts=3, base_delay=SECOND))
    class Prepares:
        Context = Nothing

        @classmethod
        def create_context(cls, event):
            raise error

        @step(start=True)
        def begin(self):
            return complete()

    Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
    for _ in range(9):
        work()
        clock.tick(MINUTE)
    run = WorkflowRun.objects.get()
    assert (run.status, run.attempt) == ("failed", 3)
    assert history(run) == [("begin", 1, "error"), ("begin", 2, "error"), ("begin", 3, "error")]


def test_a_save_does_not_shorten_the_pause_of_a_planned_run(clock, work):
    tries = []

    @event_workflow("checkin_due", offset=-HOUR)
    class Prepares:
        Context = Nothing

        @classmethod
        def create_context(cls, event):
            tries.append(clock.now)
            raise RetryAfter(MINUTE, "HTTP 429")

        @step(start=True)
        def begin(self):
            return complete()

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
    work()
    change(stay, checkin_at=stay.checkin_at - SECOND)
    work()
    assert len(tries) == 1
    assert WorkflowRun.objects.get().wake_at == clock.now + MINUTE


def test_the_activation_of_an_agent_counts_every_attempt(clock, work):
    @agent("slow", spawn_on="booking_created", default_retry=Retry(max_attempts=2))
    class Slow:
        Context = Nothing

        @classmethod
        def create_context(cls, event):
            raise RetryAfter(MINUTE, "HTTP 429")

        @handler("booking_created")
        def created(self):
            pass

    book()
    work()
    run = AgentRun.objects.get()
    assert (run.status, run.attempt, run.wake_at) == ("pending", 1, clock.now + MINUTE)
    work(run.wake_at)
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("failed", 2)


def test_a_claim_that_was_acquired_meanwhile_does_not_stop_a_handler_that_has_begun(clock, work):
    answers = [RetryAfter(MINUTE), None]

    @agent("begun", spawn_on="booking_created", match={"pk": "{{ ctx.pk }}"})
    class Begun:
        class Context(BaseModel):
            pk: int

        @classmethod
        def create_context(cls, event):
            return cls.Context(pk=event.entity.pk)

        @handler("booking_confirmed")
        def confirmed(self):
            if error := answers.pop(0):
                raise error
            leave("confirmed")

    booking = book()
    work()
    change(booking, status="confirmed")
    work()
    other = engine.start(a_waiting_workflow())
    claims.hold("booking_confirmed", {"pk": booking.pk}, owner=other, expires_in=None)
    clock.tick(MINUTE)
    work()
    assert effects() == ["confirmed"]


def a_waiting_workflow() -> type:
    @workflow("owner")
    class Owner:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return wait("never")

    return Owner


def test_each_lost_lease_is_recorded_also_after_a_deferral(clock, work):
    a_step(Service(clock, RetryAfter(MINUTE), RetryAfter(MINUTE)), Retry(1))
    run = WorkflowRun.objects.get()
    for _ in range(2):
        claim(WorkflowRun, clock.now, 1)
        clock.tick(HOUR)  # the worker has died
        work()
        clock.tick(MINUTE)
    work()
    assert [outcome for _, _, outcome in history(run)] == ["lost", "retry_after", "lost", "retry_after", "complete"]


@pytest.mark.slow
def test_the_history_of_an_endless_loop_is_pruned(clock, work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "RETENTION_HISTORY": DAY}

    @workflow("endless")
    class Endless:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return wait("go", then=self.ask)

        @step()
        def ask(self):
            raise RetryAfter(HOUR, "HTTP 429")

    run = engine.start("endless")
    work()
    signal = engine.signal("go")
    for _ in range(50):
        work()
        clock.tick(HOUR)
    assert run.steps.filter(outcome="retry_after").count() == 50
    cleanup_old(clock.now)
    assert run.steps.filter(outcome="retry_after").count() == 24
    assert run.steps.filter(outcome="wait").count() == 1
    assert not StepExecution.objects.filter(outcome="retry_after").exclude(wake_ref=None).exists()
    run.refresh_from_db()
    assert (run.wake_ref, run.deferrals) == (signal.pk, 50)


def test_a_signal_counts_as_consumed_when_the_deferred_visit_has_ended(clock, work):
    answers = [RetryAfter(MINUTE), None]

    @workflow("consumes")
    class Consumes:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return wait("go", then=self.ask)

        @step()
        def ask(self):
            if error := answers.pop(0):
                raise error
            return wait("go", timeout=MINUTE, then=self.end, on_timeout=self.late)

        @step()
        def end(self):
            return complete()

        @step()
        def late(self):
            leave("late")
            return complete()

    run = engine.start("consumes")
    work()
    engine.signal("go")
    work()
    clock.tick(MINUTE)
    work()
    assert status(run) == "suspended"
    clock.tick(MINUTE)
    work()
    assert (status(run), effects()) == ("completed", ["late"])


def test_the_time_machine_collects_no_error_for_retry_after():
    calls = []

    @workflow("polite")
    class Polite:
        Context = Nothing

        @step(start=True, atomic=False)
        def ask(self):
            calls.append(idempotency_key())
            if len(calls) < 4:
                raise RetryAfter(timedelta(minutes=20), "HTTP 429")
            return goto(self.end)

        @step()
        def end(self):
            return complete()

    with time_machine("2030-01-07T12:00+01:00", raise_errors=True) as machine:
        run = engine.start("polite")
        machine.advance(minutes=59)
        assert (status(run), len(calls)) == ("waiting", 3)
        machine.advance(minutes=1)
        assert (status(run), len(calls), machine.errors) == ("completed", 4, [])
