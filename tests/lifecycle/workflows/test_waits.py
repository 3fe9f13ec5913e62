"""Waits: timeouts, the decorator, and what happens when a process dies around a wait."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation.workflows import run_session
from django_ai.automation.workflows.core import (
    complete,
    engine,
    event_workflow,
    get_wake,
    goto,
    sleep,
    step,
    wait,
    wait_for_event,
)
from django_ai.automation.workflows.models import Signal, StepExecution, WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.rows import effects, event_of, leave, status, the_run
from tests.support.waiting_runs import begin, confirm, match_flow, upload, waiter

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


# -- timeouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_timeout_enters_the_step_again(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR))
    run = begin(work)
    assert run.wake_at == clock() + HOUR
    clock.tick(HOUR - timedelta(microseconds=1))
    assert work() == 0
    clock.tick(timedelta(microseconds=1))
    work()
    assert (status(run), effects()) == ("completed", ["timeout"])


def test_a_timeout_goes_to_on_timeout(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout=self.other))
    run = begin(work)
    clock.tick(HOUR)
    work()
    assert (status(run), effects()) == ("completed", ["other", "timeout"])


def test_a_signal_in_time_does_not_go_to_on_timeout(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout="other"))
    begin(work)
    clock.tick(HOUR - SECOND)
    engine.signal("bell")
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["signal"]


def test_then_is_for_the_signal_and_not_for_the_timeout(clock, work):
    outcome = lambda self: wait("bell", timeout=HOUR, then="other")  # noqa: E731
    waiter(outcome=outcome)
    one = begin(work)
    clock.tick(HOUR)
    work()
    assert (status(one), effects()) == ("completed", ["timeout"])
    begin(work)
    engine.signal("bell")
    work()
    assert effects() == ["timeout", "other", "signal"]


def test_signal_and_timeout_at_the_same_instant_are_one_branch(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout="other"))
    run = begin(work)
    clock.tick(HOUR)
    engine.signal("bell", run=run)
    work()
    work()
    assert status(run) == "completed"
    assert effects() in (["signal"], ["other", "timeout"])
    assert StepExecution.objects.filter(run=run).count() == 2


def test_a_timeout_of_zero_only_looks(work):
    waiter(outcome=lambda self: wait("bell", timeout=timedelta(0)))
    run = engine.start("waiter")
    engine.signal("bell", {"n": 1}, run=run)
    work()
    empty = begin(work)
    work()
    assert (status(run), status(empty)) == ("completed", "completed")
    assert effects() == ["signal {'n': 1}", "timeout"]


def test_after_a_timeout_a_late_signal_finds_nobody(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout="other"))
    begin(work)
    clock.tick(HOUR)
    work()
    engine.signal("bell")
    work()
    assert effects() == ["other", "timeout"]


# -- the decorator -----------------------------------------------------------------------------------------------------


@pytest.fixture
def decorated():
    @event_workflow("reservation_confirmed", name="decorated")
    class Decorated:
        class Context(BaseModel):
            docs_ready: bool = False

        @step(start=True)
        def first(self):
            return goto(self.second)

        @wait_for_event("guest_docs_uploaded", timeout=HOUR, on_timeout="without")
        @step()
        def second(self):
            leave(f"second {get_wake().reason} {self.context.docs_ready}")
            return complete()

        @step()
        def without(self):
            leave("without")
            return complete()


@pytest.mark.usefixtures("decorated")
def test_a_decorated_step_starts_when_its_event_has_come(clock, work):
    stay = confirm()
    clock.tick(SECOND)
    work()
    assert (the_run().status, the_run().current_step, effects()) == ("suspended", "second", [])
    upload(stay)
    work()
    assert effects() == ["second event True"]


@pytest.mark.usefixtures("decorated")
def test_a_decorated_step_times_out(clock, work):
    confirm()
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["without"]


@pytest.mark.parametrize("how", ["start", "sleep", "signal"])
def test_a_decorated_step_waits_however_it_was_reached(how, clock, work):
    body = {"Context": type("Context", (BaseModel,), {"__module__": __name__}), "__module__": __name__}

    def second(self):
        leave(f"second {get_wake().reason}")
        return complete()

    if how == "start":
        body["second"] = wait_for_event("guest_docs_uploaded")(step(start=True)(second))
    else:
        body["second"] = wait_for_event("guest_docs_uploaded")(step()(second))

        def first(self):
            return sleep(HOUR, then="second") if how == "sleep" else wait("bell", then="second")

        body["first"] = step(start=True)(first)
    event_workflow("reservation_confirmed", name="reached")(type("Reached", (), body))
    stay = confirm()
    clock.tick(SECOND)
    work()
    clock.tick(HOUR)
    engine.signal("bell")
    work()
    assert (the_run().status, effects()) == ("suspended", [])
    upload(stay)
    work()
    assert (the_run().status, effects()) == ("completed", ["second event"])


def test_occurrences_that_nobody_waits_for_cost_no_wake_up(work):
    waiter()
    begin(work)
    before = the_run().seq
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert the_run().seq == before


def test_a_parked_event_wakes_nobody_until_it_is_resumed(work, monkeypatch):
    from tests.support.rows import definition_of, use_up_attempts

    match_flow({})
    run = begin(work, "matching")
    definition = definition_of(Document, "document_uploaded")
    right = definition.payload
    monkeypatch.setattr(definition, "payload", lambda document: 1 / 0)
    document = Document.objects.create(reservation=Reservation.objects.create())
    use_up_attempts(event_of(document, "document_uploaded"), work)
    assert status(run) == "suspended"
    monkeypatch.setattr(definition, "payload", right)
    event_of(document, "document_uploaded").resume()
    work()
    assert status(run) == "completed"


def test_a_process_that_dies_between_commit_and_notification_leaves_it_to_a_worker(clock, work, monkeypatch):
    from django_ai.automation.events import occurrence

    match_flow({})
    run = begin(work, "matching")
    notify = occurrence.notify_subscribers
    monkeypatch.setattr(occurrence, "notify_subscribers", lambda *args, **kwargs: None)
    clock.tick(SECOND)
    document = Document.objects.create(reservation=Reservation.objects.create())
    assert event_of(document, "document_uploaded").status == "processed"
    work()
    assert status(run) == "suspended"
    monkeypatch.setattr(occurrence, "notify_subscribers", notify)
    clock.tick(timedelta(seconds=11))
    work()
    assert status(run) == "completed"


def suspended_by_a_dead_worker(work, monkeypatch) -> WorkflowRun:
    """Start and signal the waiter; its worker dies after it has registered the wait, before it looks for the signal."""
    with monkeypatch.context() as patch:
        patch.setattr(run_session, "settle", lambda *args: None)
        run = engine.start("waiter")
        engine.signal("bell", run=run)
        Signal.objects.update(wake_at=None)  # delivered while the run was leased: it stays in the inbox
        work()
    assert status(run) == "suspended"
    return run


def test_a_worker_that_dies_after_registering_and_before_looking(clock, work, monkeypatch):
    waiter()
    run = suspended_by_a_dead_worker(work, monkeypatch)
    clock.tick(timedelta(seconds=11))
    work()
    assert status(run) == "completed"


@pytest.mark.parametrize("seconds", [1, 100])
def test_a_worker_that_dies_before_it_has_looked_makes_no_timeout_of_what_had_come(seconds, clock, work, monkeypatch):
    waiter(outcome=lambda self: wait("bell", timeout=seconds * SECOND, on_timeout="other"))
    run = suspended_by_a_dead_worker(work, monkeypatch)
    clock.tick(timedelta(seconds=200))
    work()
    assert (status(run), effects()) == ("completed", ["signal"])
