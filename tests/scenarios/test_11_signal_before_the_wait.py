"""11, signal before the wait: a wait and its signal or event, in every order that two processes can produce.
No wake-up is lost, and no run is woken twice.

The tests force each order: the other side acts at a named point of this side's code.
"""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation import complete, engine, event_workflow, get_wake, step, wait, wait_for_event, workflow
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows import delivery, run_session, waits
from django_ai.automation.workflows.models import Signal, WorkflowRun, WorkflowStatus
from tests.apps.reservations.models import Effect, Reservation

pytestmark = pytest.mark.django_db(transaction=True)

DURING_STEP: list = []
"""Functions that act as the other side while the step that will wait is running."""


@pytest.fixture(autouse=True)
def flows():
    @workflow("race:signal")
    class ForSignal:
        class Context(BaseModel):
            word: str = ""

        @step(start=True)
        def listen(self):
            if get_wake().reason == "signal":
                Effect.objects.create(name=f"heard {self.context.word}")
                return complete()
            while DURING_STEP:
                DURING_STEP.pop()()
            return wait("race:word")

    @event_workflow("reservation_confirmed", name="race:event")
    class ForEvent:
        class Context(BaseModel):
            docs_ready: bool = False

        @step(start=True)
        def listen(self):
            if get_wake().reason == "event":
                Effect.objects.create(name=f"docs {self.context.docs_ready}")
                return complete()
            while DURING_STEP:
                DURING_STEP.pop()()
            return wait_for_event("guest_docs_uploaded")

    yield
    DURING_STEP.clear()


def send() -> Signal:
    return engine.signal("race:word", {"word": "now"})


def deliver(signal: Signal) -> None:
    """Claim and deliver the signal as another worker would."""
    from django.utils import timezone

    from django_ai.automation.queues.claim import claim

    (mine,) = claim(Signal, timezone.now(), 1)
    assert mine.pk == signal.pk
    delivery.deliver(mine, timezone.now)


def upload(reservation: Reservation) -> None:
    fresh = Reservation.objects.get(pk=reservation.pk)
    fresh.docs = True
    fresh.save()  # the event occurs and notifies at this commit


def finish_signal_run(run: WorkflowRun) -> None:
    drain()
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED
    assert [effect.name for effect in Effect.objects.all()] == ["heard now"]
    drain()
    assert Effect.objects.count() == 1


class TestSignals:
    def test_11_sent_and_delivered_while_the_step_runs(self):
        run = engine.start("race:signal")
        DURING_STEP.append(send)
        finish_signal_run(run)

    def test_11_sent_and_delivered_between_registration_and_look(self, monkeypatch):
        look = waits._in_inbox

        def first_the_signal(run, wait):
            monkeypatch.setattr(waits, "_in_inbox", look)
            deliver(send())
            return look(run, wait)

        monkeypatch.setattr(waits, "_in_inbox", first_the_signal)
        finish_signal_run(engine.start("race:signal"))

    def test_11_sent_and_delivered_between_look_and_rest(self, monkeypatch):
        look = waits._occurrence

        def then_the_signal(run, wait):
            monkeypatch.setattr(waits, "_occurrence", look)
            found = look(run, wait)
            deliver(send())
            return found

        monkeypatch.setattr(waits, "_occurrence", then_the_signal)
        finish_signal_run(engine.start("race:signal"))

    def test_11_sent_before_the_look_and_delivered_after_the_rest(self):
        run = engine.start("race:signal")
        drain()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.SUSPENDED
        assert run.wake_at is None
        deliver(send())
        finish_signal_run(run)

    def test_11_the_worker_dies_between_registration_and_look(self, monkeypatch):
        run = engine.start("race:signal")
        monkeypatch.setattr(run_session, "settle", lambda *args: None)
        drain()
        monkeypatch.undo()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.SUSPENDED
        assert run.wake_at is not None  # due soon, so a worker looks for the signal
        drain(run.wake_at)
        run.refresh_from_db()
        assert (run.status, run.wake_at, run.lease) == (WorkflowStatus.SUSPENDED, None, None)
        deliver(send())
        finish_signal_run(run)

    def test_11_targeted_between_look_and_rest(self, monkeypatch):
        run = engine.start("race:signal")
        look = waits._occurrence

        def then_the_signal(row, wait):
            monkeypatch.setattr(waits, "_occurrence", look)
            found = look(row, wait)
            deliver(engine.signal("race:word", {"word": "now"}, run=run))
            return found

        monkeypatch.setattr(waits, "_occurrence", then_the_signal)
        finish_signal_run(run)
        assert Signal.objects.filter(consumed_at=None).count() == 0

    def test_11_targeted_taken_by_the_look_is_not_delivered_again(self, monkeypatch):
        run = engine.start("race:signal")
        look = waits._in_inbox

        def first_the_signal(row, wait):
            monkeypatch.setattr(waits, "_in_inbox", look)
            engine.signal("race:word", {"word": "now"}, run=run)  # committed, but not delivered yet
            return look(row, wait)

        monkeypatch.setattr(waits, "_in_inbox", first_the_signal)
        finish_signal_run(run)


class TestEvents:
    def start(self) -> tuple[Reservation, WorkflowRun]:
        reservation = Reservation.objects.create(status="confirmed")
        return reservation, WorkflowRun.objects.get(name="race:event")

    def finish(self, run: WorkflowRun) -> None:
        drain()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.COMPLETED
        assert [effect.name for effect in Effect.objects.all()] == ["docs True"]

    def test_11_occurs_while_the_step_runs(self):
        reservation, run = self.start()
        DURING_STEP.append(lambda: upload(reservation))
        self.finish(run)

    def test_11_occurs_between_registration_and_look(self, monkeypatch):
        reservation, run = self.start()
        look = waits._in_inbox

        def first_the_event(row, wait):
            monkeypatch.setattr(waits, "_in_inbox", look)
            upload(reservation)
            return look(row, wait)

        monkeypatch.setattr(waits, "_in_inbox", first_the_event)
        self.finish(run)

    def test_11_occurs_between_look_and_rest(self, monkeypatch):
        reservation, run = self.start()
        look = waits._occurrence

        def then_the_event(row, wait):
            monkeypatch.setattr(waits, "_occurrence", look)
            found = look(row, wait)
            upload(reservation)
            return found

        monkeypatch.setattr(waits, "_occurrence", then_the_event)
        self.finish(run)

    def test_11_the_process_dies_between_occurrence_and_notification(self, monkeypatch):
        from django_ai.automation.events import occurrence
        from django_ai.automation.events.models import Event

        reservation, run = self.start()
        drain()
        monkeypatch.setattr(occurrence, "notify_subscribers", lambda events, clock: None)
        upload(reservation)
        monkeypatch.undo()
        event = Event.objects.get(event_name="guest_docs_uploaded")
        assert (event.status, event.pending_notifications) == ("processed", [""])
        drain()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.SUSPENDED
        drain(event.wake_at)
        drain(event.wake_at)
        event.refresh_from_db()
        assert (event.pending_notifications, event.wake_at) == ([], None)
        self.finish(run)
