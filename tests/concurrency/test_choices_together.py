"""Branches that race: of ``wait_any`` one wins each time, of ``wait_all`` each is received once."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from django.db import transaction

from django_ai.automation import engine
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.registry import due_times
from django_ai.automation.workflows.core import (
    complete,
    get_wake,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import StepExecution, Wait, WorkflowRun
from tests.apps.reservations.models import Document, Effect, Reservation
from tests.support.choosing_runs import Fields, heard
from tests.support.race import together_with_workers
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.timeout(300)]

SHORT = timedelta(seconds=5)
"""Shorter than a lease: moving the clock by it takes the row of no worker."""


def race(number: int, clock) -> None:
    """Let runs wait that nothing has reached yet, and let everything reach them at the same time."""
    for _ in range(number):
        engine.start("race")
    drain()
    assert WorkflowRun.objects.filter(status="suspended").count() >= number
    stay = Reservation.objects.create()
    raised = together_with_workers(
        lambda: Document.objects.create(reservation=stay),
        lambda: Reservation.objects.create(status="confirmed"),
        lambda: engine.signal("bell"),
        lambda: clock.tick(SHORT),
        workers=2,
    )
    assert raised == []
    finish(clock)


def finish(clock) -> None:
    """Perform everything that is due, also what is due again a second after a deadlock."""
    drain()
    while (times := due_times()) and min(times.values()) < clock() + timedelta(minutes=1):
        clock.now = max(clock.now, min(times.values()))
        drain()


def test_each_of_a_thousand_races_of_four_branches_has_one_winner(clock):
    @workflow("race")
    class Race:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait_any(
                papers=wait_for_event("document_uploaded", match={}),
                confirmed=wait_for_event("reservation_confirmed", match={}),
                bell=wait("bell"),
                later=sleep(SHORT),
                then=self.end,
            )

        @step()
        def end(self):
            leave(f"{get_wake().branch}")
            return complete()

    won: Counter[str] = Counter()
    for _ in range(25):
        race(40, clock)
        assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
        won.update(effects())
        ends = StepExecution.objects.filter(step="end").exclude(outcome=StepExecution.LOST)
        assert (ends.count(), len(effects()), Wait.objects.count()) == (40, 40, 0)
        forget()
    assert won.total() == 1000
    assert len(won) > 1, won


def test_of_all_branches_each_is_received_once_however_many_come_together(clock):
    @workflow("race")
    class Race:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait_all(
                papers=wait_for_event("document_uploaded", match={}),
                confirmed=wait_for_event("reservation_confirmed", match={}),
                bell=wait("bell"),
                later=sleep(SHORT),
                then=self.end,
            )

        @step()
        def end(self):
            leave(" ".join(sorted(heard().split())))
            return complete()

    for _ in range(10):
        race(20, clock)
        assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
        assert effects() == ["all bell=signal confirmed=event later=timer papers=event"] * 20
        arrived = StepExecution.objects.filter(outcome=StepExecution.ARRIVED)
        assert Counter(arrived.values_list("step", flat=True)) == dict.fromkeys(
            ("papers", "confirmed", "bell", "later"), 20
        )
        assert not Wait.objects.exists()
        forget()


def test_two_signals_that_come_together_end_two_branches(clock):
    @workflow("race")
    class Race:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait_all(one=wait("approval"), two=wait("approval"), then=self.end)

        @step()
        def end(self):
            leave(f"{heard()} {len({each.payload['n'] for each in get_wake().branches.values()})}")
            return complete()

    for _ in range(10):
        for _ in range(10):
            engine.start("race")
        drain()
        together_with_workers(
            lambda: engine.signal("approval", {"n": 1}), lambda: engine.signal("approval", {"n": 2}), workers=3
        )
        finish(clock)
        assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
        assert effects() == ["all one=signal two=signal 2"] * 10
        forget()


def forget() -> None:
    """Remove what a round has left: the next one begins without it."""
    with transaction.atomic():
        WorkflowRun.objects.all().delete()
        Effect.objects.all().delete()
