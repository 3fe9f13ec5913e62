"""``deadline=`` of event workflows: from when it counts, for planned runs and for those of a window, too."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    Debounce,
    Retry,
    RetryAfter,
    complete,
    engine,
    event_workflow,
    step,
    wait,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.limited_runs import DAY, HOUR, MINUTE, Doing
from tests.support.rows import change, effects, leave, status

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]


def of_an_event(offset: timedelta | None = None) -> None:
    @event_workflow("checkin_due", offset=offset, deadline=HOUR, name="of an event")
    class OfAnEvent:
        Context = Doing

        @step(start=True)
        def begin(self):
            leave("begin")
            return wait("go")


def test_the_run_of_an_event_counts_from_the_occurrence(clock, work):
    of_an_event()
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
    clock.tick(HOUR)
    work()
    run = WorkflowRun.objects.get()
    assert (run.deadline, run.wake_at) == (clock.now + HOUR, clock.now + HOUR)


@pytest.mark.parametrize("offset", [-2 * HOUR, 2 * HOUR])
def test_a_planned_run_counts_from_its_date_and_moves_with_it(clock, work, offset):
    of_an_event(offset)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    run = WorkflowRun.objects.get()
    assert (run.status, run.deadline) == ("waiting", None)
    change(stay, checkin_at=clock.now + 2 * DAY)
    start = clock.now + 2 * DAY + offset
    for moment in sorted({clock.now + DAY, min(clock.now + 2 * DAY, start), start}):
        clock.now = moment
        work()
    run.refresh_from_db()
    assert (run.status, run.deadline, run.wake_at) == ("suspended", start + HOUR, start + HOUR)
    clock.now = start + HOUR
    work()
    assert status(run) == "failed"


def planned_and_started_late(by: timedelta, clock: Any, work: Any) -> tuple[WorkflowRun, datetime]:
    """Return a planned run that was started ``by`` too late, and its deadline, an hour after its planned time."""
    of_an_event(-2 * HOUR)
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    planned = clock.now + DAY - 2 * HOUR
    clock.now = planned + by
    work()
    return WorkflowRun.objects.get(), planned + HOUR


def test_a_planned_run_that_is_started_late_has_less_time(clock, work):
    run, deadline = planned_and_started_late(MINUTE, clock, work)
    assert (run.status, run.deadline) == ("suspended", deadline)


def test_a_planned_run_that_is_started_after_its_deadline_fails(clock, work):
    run, deadline = planned_and_started_late(HOUR, clock, work)
    assert (run.status, run.deadline, effects()) == ("failed", deadline, [])
    clock.tick(DAY)
    engine.resume(run)
    work()
    assert (status(run), run.deadline, effects()) == ("suspended", clock.now + HOUR, ["begin"])


def test_a_run_that_is_planned_for_a_past_date_counts_from_its_creation(clock, work):
    of_an_event(-2 * HOUR)
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + MINUTE)
    work()
    run = WorkflowRun.objects.get()
    assert (run.status, run.deadline) == ("suspended", run.created_at + HOUR)


def test_a_planned_run_that_cannot_make_its_context_fails_at_its_deadline(clock, work):
    @event_workflow("checkin_due", offset=-HOUR, deadline=HOUR)
    class Defers:
        Context = Doing

        @classmethod
        def create_context(cls, event):
            raise RetryAfter(25 * MINUTE, "HTTP 429")

        @step(start=True)
        def begin(self):
            return complete()

    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.now = start = clock.now + DAY - HOUR
    run = WorkflowRun.objects.get()
    for minutes in (25, 50, 60):
        work()
        run.refresh_from_db()
        assert run.wake_at == start + minutes * MINUTE
        clock.now = run.wake_at
    work()
    assert status(run) == "failed"
    assert "RetryAfter 3 times in a row: HTTP 429" in run.error


def test_a_run_that_is_planned_again_gets_a_new_deadline(clock, work):
    answers = [ValueError("no")]

    @event_workflow("checkin_due", offset=-HOUR, deadline=HOUR, default_retry=Retry(2, base_delay=MINUTE))
    class Fails:
        Context = Doing

        @classmethod
        def create_context(cls, event):
            if answers:
                raise answers.pop()
            return cls.Context()

        @step(start=True)
        def begin(self):
            return wait("never")

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
    work()
    run = WorkflowRun.objects.get()
    assert (run.attempt, run.deadline) == (1, clock.now + HOUR)
    change(stay, status="cancelled")
    assert status(run) == "withdrawn"
    change(stay, status="confirmed", checkin_at=clock.now + DAY)
    assert (status(run), run.deadline) == ("waiting", None)
    clock.tick(DAY - HOUR)
    work()
    assert (status(run), run.deadline) == ("suspended", clock.now + HOUR)


def test_the_run_of_a_window_counts_from_the_end_of_the_window(clock, work):
    answers = [RetryAfter(40 * MINUTE), RetryAfter(40 * MINUTE)]

    @event_workflow("document_uploaded", debounce=Debounce(MINUTE), deadline=HOUR)
    class Collects:
        class Context(BaseModel):
            number: int

        @classmethod
        def create_context(cls, events):
            if answers:
                raise answers.pop()
            return cls.Context(number=len(events))

        @step(start=True)
        def begin(self):
            return wait("never")

    stay = Reservation.objects.create()
    for _ in range(2):
        Document.objects.create(reservation=stay)
    run = WorkflowRun.objects.get()
    assert run.deadline is None
    clock.tick(MINUTE)
    deadline = clock.now + HOUR
    for minutes in (40, 20):
        work()
        run.refresh_from_db()
        assert (run.deadline, run.wake_at) == (deadline, clock.now + minutes * MINUTE)
        clock.now = run.wake_at
    work()
    assert status(run) == "failed"
