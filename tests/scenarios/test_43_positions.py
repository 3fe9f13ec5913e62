"""Scenario 43: workers are behind, or the clocks of machines differ.

A run receives every event and signal that arrived after its creation and that it has not consumed, whatever the clocks
say. Positions decide this. They are allocated in one order and may commit in another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import complete, engine, event_workflow, get_wake, step, wait, wait_for_event, workflow
from django_ai.automation.events import occurrence
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import Signal, StepExecution, WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.race import OtherThread, row_locks
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

SKEWS = [timedelta(milliseconds=number) for number in (-500, -50, 50, 500)]


@pytest.fixture
def guest() -> None:
    @event_workflow("reservation_confirmed", name="guest")
    class Guest:
        class Context(BaseModel):
            pass

        @step(start=True)
        def listen(self):
            if get_wake().reason == "event":
                leave("docs")
                return complete()
            return wait_for_event("guest_docs_uploaded")


@pytest.fixture
def listener() -> None:
    """Declare a workflow that waits for three signals ``bell``."""

    @workflow("listener")
    class Listener:
        class Context(BaseModel):
            heard: int = 0

        @step(start=True)
        def listen(self):
            if get_wake().reason == "signal":
                self.context.heard += 1
                leave(f"bell {get_wake().payload['n']}")
            return complete() if self.context.heard == 3 else wait("bell")


@pytest.fixture
def collector() -> None:
    @workflow("collector")
    class Collector:
        class Context(BaseModel):
            kind: str = "visa"

        @step(start=True)
        def listen(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["kind"])
            return wait_for_event("document_uploaded", match={"kind": "{{ ctx.kind }}"})


def ring(n: int) -> Signal:
    return engine.signal("bell", {"n": n})


def deliver_only() -> None:
    """Deliver all signals that were sent, and execute no run."""
    for signal in Signal.objects.filter(delivered_at=None):
        drained = drain_signals()
        assert drained, signal


def drain_signals() -> int:
    from django_ai.automation.queues.claim import claim

    found = claim(Signal, timezone.now() + timedelta(seconds=1), 10)
    for signal in found:
        signal.perform(timezone.now)
    return len(found)


def visa(kind: str = "visa") -> Document:
    return Document.objects.create(reservation=Reservation.objects.create(), kind=kind)


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize("behind", [timedelta(0), timedelta(seconds=30), timedelta(days=3)])
def test_43_an_event_before_the_first_step(clock, work, behind):
    stay = Reservation.objects.create(status="confirmed")
    clock.tick(timedelta(seconds=1))
    stay.docs = True
    stay.save()
    clock.tick(behind)
    work()
    assert effects() == ["docs"]


@pytest.mark.usefixtures("listener")
def test_43_signals_before_the_first_step(clock, work):
    ring(0)
    work()
    engine.start("listener")
    for n in (1, 2, 3):
        clock.tick(timedelta(seconds=30))
        ring(n)
        deliver_only()
    assert effects() == []
    work()
    assert effects() == ["bell 1", "bell 2", "bell 3"]


@pytest.mark.usefixtures("listener")
def test_43_the_second_broadcast_while_the_run_was_woken_and_has_not_begun(clock, work):
    run = engine.start("listener")
    work()
    for n in (1, 2, 3):
        ring(n)
        deliver_only()
    run.refresh_from_db()
    assert (run.status, run.wake_reason) == ("running", "signal")
    work()
    assert effects() == ["bell 1", "bell 2", "bell 3"]
    refs = StepExecution.objects.filter(run=run, wake_reason="signal").values_list("wake_ref", flat=True)
    assert len(set(refs)) == 3


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
def test_43_an_event_from_a_machine_with_another_clock(clock, work, skew, begun):
    stay = Reservation.objects.create(status="confirmed")
    if begun:
        work()
    clock.tick(skew)
    stay.docs = True
    stay.save()
    clock.tick(-skew)
    work()
    work(clock() + timedelta(seconds=1))
    assert effects() == ["docs"]


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("skew", SKEWS)
def test_43_broadcasts_from_a_machine_with_another_clock(clock, work, skew):
    engine.start("listener")
    for n in (1, 2, 3):
        clock.tick(skew)
        ring(n)
        clock.tick(-skew)
        work(clock() + timedelta(seconds=n))
    assert effects() == ["bell 1", "bell 2", "bell 3"]


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("skew", SKEWS)
def test_43_a_burst_of_events(clock, work, skew):
    """Each event of a burst is consumed once, whatever the clock of the machine that saves the entities."""
    visa()
    engine.start("collector")
    clock.tick(skew)
    for _ in range(5):
        visa()
        visa("other")
    clock.tick(-skew)
    work(clock() + timedelta(seconds=1))
    assert effects() == ["visa"] * 5
    visa()
    work(clock() + timedelta(seconds=2))
    assert effects() == ["visa"] * 6


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found = Held(monkeypatch)
    yield found
    found.go_on.set()


class Held:
    """An occurrence in another thread: its position is allocated, and its transaction has not committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken, self.go_on = threading.Event(), threading.Event()
        real = occurrence._fan_out
        self.thread: OtherThread | None = None

        def fan_out(*arguments: Any) -> None:
            real(*arguments)
            if threading.current_thread() is not threading.main_thread():
                self.taken.set()
                assert self.go_on.wait(30)

        monkeypatch.setattr(occurrence, "_fan_out", fan_out)
        monkeypatch.setattr(occurrence, "_occur_in_one_statement", lambda *arguments: [])  # it cannot be held

    def begin(self) -> None:
        self.thread = OtherThread(visa)
        assert self.taken.wait(20)

    def commit(self) -> None:
        assert self.thread is not None
        self.go_on.set()
        self.thread.join()


@row_locks
@pytest.mark.usefixtures("collector")
def test_43_a_lower_position_commits_after_the_run_waits(held):
    held.begin()
    visa("other")
    run = engine.start("collector")
    drain()
    run.refresh_from_db()
    assert run.status == "suspended"
    held.commit()
    drain()
    assert effects() == ["visa"]


@row_locks
@pytest.mark.usefixtures("collector")
def test_43_a_lower_position_commits_before_the_run_begins(held):
    """A run that is created while an occurrence is uncommitted gets no notification, and finds it by its lookback."""
    held.begin()
    visa("other")
    engine.start("collector")
    held.commit()
    drain()
    drain()
    assert effects() == ["visa"]


@row_locks
@pytest.mark.usefixtures("collector")
def test_43_a_lower_position_that_is_notified_late(held, monkeypatch):
    """If a process dies after its commit, a worker notifies later, and a run created before the commit wakes."""
    notify = occurrence.notify_subscribers
    held.begin()
    visa("other")
    run = engine.start("collector")
    drain()
    monkeypatch.setattr(occurrence, "notify_subscribers", lambda *args: None)
    held.commit()
    monkeypatch.setattr(occurrence, "notify_subscribers", notify)
    run.refresh_from_db()
    assert (run.status, effects()) == ("suspended", [])
    drain(timezone.now() + timedelta(seconds=11))
    drain(timezone.now() + timedelta(seconds=12))
    assert effects() == ["visa"]


@pytest.mark.usefixtures("collector")
def test_43_what_is_notified_late_does_not_reach_a_younger_run(monkeypatch):
    notify = occurrence.notify_subscribers
    monkeypatch.setattr(occurrence, "notify_subscribers", lambda *args: None)
    visa()
    monkeypatch.setattr(occurrence, "notify_subscribers", notify)
    engine.start("collector")
    drain()
    drain(timezone.now() + timedelta(seconds=11))
    drain(timezone.now() + timedelta(seconds=12))
    assert effects() == []


def test_43_a_planned_run_counts_from_its_date_though_workers_are_late_real_seconds():
    @event_workflow("checkin_due", offset=timedelta(seconds=2), name="planned")
    class Planned:
        class Context(BaseModel):
            pass

        @step(start=True)
        def listen(self):
            if get_wake().reason == "signal":
                leave(f"bell {get_wake().payload['n']}")
                return complete()
            return wait("bell")

    Reservation.objects.create(status="confirmed", checkin_at=timezone.now())
    drain()
    ring(1)
    assert drain_signals()
    due = WorkflowRun.objects.get(name="planned").wake_at
    assert due is not None
    time.sleep(max((due - timezone.now()).total_seconds(), 0) + 0.05)
    ring(2)
    drain()
    assert effects() == ["bell 2"]
