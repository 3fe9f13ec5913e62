"""Automations trigger each other for hours.

This is not an event storm, regardless of the number of rounds. A loop without a pause is one, and is parked.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import Retry, engine, goto, on_event, step, wait, wait_for_event, workflow
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE = timedelta(minutes=1)
CAP = 10
ROUNDS = 12


@pytest.fixture(autouse=True)
def low_cap(settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": CAP}


@pytest.fixture(autouse=True)
def conversation(declare):
    """Declare one event for a question (a new reservation) and one for its answer (a changed status)."""
    declare(
        Reservation,
        EventDefinition("asked:{{ instance.pk }}", trigger=EventTrigger.CREATE),
        EventDefinition("answered:{{ instance.pk }}", condition=lambda asked: asked.status == "answered"),
    )


def asker(then_waits: bool) -> None:
    @workflow("asker")
    class Asker:
        class Context(BaseModel):
            document: int = 0
            rounds: int = 0

        @step(start=True)
        def ask(self):
            self.context.document = Reservation.objects.create(status="asked").pk
            return goto(self.listen)

        @step()
        def listen(self):
            return wait_for_event("answered:{{ ctx.document }}", match={}, then=self.go_on)

        @step()
        def go_on(self):
            self.context.rounds += 1
            return wait("next", then=self.ask) if then_waits else goto(self.ask)


def answer(reservation: Reservation) -> None:
    reservation.status = "answered"
    reservation.save()


def parked() -> list[str]:
    return list(Event.objects.filter(status="parked").values_list("event_name", flat=True))


def rounds_of(run) -> int:
    run.refresh_from_db()
    return int(run.data["rounds"])


def test_44_rounds_that_wait_for_a_signal(clock, work):
    asker(then_waits=True)

    @on_event("asked:*", name="answerer")
    def answerer(event):
        answer(event.entity)

    run = engine.start("asker")
    work()
    for _ in range(ROUNDS):
        clock.tick(MINUTE)
        engine.signal("next")
        work()
    assert parked() == []
    assert rounds_of(run) == ROUNDS + 1


def test_44_rounds_whose_answer_takes_its_time(clock, work):
    asker(then_waits=False)

    @on_event("asked:*", name="answerer")
    def answerer(event):
        clock.tick(MINUTE)  # the duration of a call to an external service
        if Reservation.objects.count() <= ROUNDS:
            answer(event.entity)

    run = engine.start("asker")
    work()
    assert parked() == []
    assert rounds_of(run) == ROUNDS


def test_44_rounds_whose_answer_is_tried_again(clock, work):
    asker(then_waits=False)

    @on_event("asked:*", name="answerer", retry=Retry(max_attempts=2, base_delay=MINUTE))
    def answerer(event):
        if event.executions.get().attempt == 0:
            raise LookupError("not yet")
        answer(event.entity)

    run = engine.start("asker")
    for _ in range(ROUNDS):
        work()
        clock.tick(2 * MINUTE)
    work()
    assert parked() == []
    assert rounds_of(run) == ROUNDS


def test_44_a_circle_without_a_rest_is_parked(clock, work):
    asker(then_waits=False)

    @on_event("asked:*", name="answerer")
    def answerer(event):
        answer(event.entity)

    run = engine.start("asker")
    work()
    assert len(parked()) == 1
    assert 0 < rounds_of(run) < CAP
