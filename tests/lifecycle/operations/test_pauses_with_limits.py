"""A pause and limits together: a paused row keeps no slot that another one could use."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation import Concurrency, Singleton, Throttle, engine, on_event
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues.models import HeldRow
from tests.apps.reservations.models import Reservation
from tests.support.limits import HOUR, MINUTE, limited, perform, slots, start, statuses
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_paused_run_lets_the_next_one_have_its_turn(clock, work):
    limited(concurrency=Concurrency(1))
    first, _ = start("a", "b")
    engine.pause(first)
    work()
    assert effects() == ["begin b", "end b"]
    assert first.waits_for(clock.now) == "the end of the pause of this row"
    engine.unpause(first)
    work()
    assert effects() == ["begin b", "end b", "begin a", "end a"]
    assert (statuses(), slots()) == (["completed", "completed"], {})


def test_a_run_that_is_paused_in_the_queue_is_passed_over(clock, work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "DRAIN_BUDGET": timedelta(microseconds=1)}
    limited(concurrency=Concurrency(1))
    first, second, _ = start("a", "b", "c")
    for run in (first, second):
        perform(run, clock)
    assert slots() == {"held": 1, "queued": 1}
    engine.pause(second)
    work()
    assert effects() == ["begin a", "end a", "begin c", "end c"]
    assert HeldRow.objects.get().row_pk == second.pk
    assert slots() == {}
    engine.unpause(second)
    work()
    assert effects()[-2:] == ["begin b", "end b"]


def test_a_pause_does_not_save_up_starts(clock, work):
    """After it, the runs start at the pace of their throttle, and not all at once."""
    limited(throttle=Throttle(1, per=MINUTE))
    start("a", "b", "c")
    engine.pause(workflow="limited")
    for _ in range(5):
        work()
        clock.tick(MINUTE)
    assert effects() == []
    engine.unpause(workflow="limited")
    found = []
    for _ in range(3):
        work()
        found.append(len(effects()))
        clock.tick(MINUTE)
    assert found == [2, 4, 6]


def test_a_paused_singleton_keeps_its_place(clock, work):
    """It lives on, so there must be no second one."""
    limited(singleton=Singleton())
    (first,) = start("a", do="sleep")
    work()
    engine.pause(first)
    clock.tick(HOUR)
    work()
    start("b")
    work()
    assert (effects(), statuses()) == (["begin a"], ["waiting", "cancelled"])
    engine.unpause(first)
    work()
    assert (effects(), statuses()) == (["begin a", "end a"], ["completed", "cancelled"])


def test_a_paused_call_lets_another_one_have_its_turn(clock, work):
    @on_event("reservation_confirmed", name="limited", concurrency=Concurrency(1))
    def call(event):
        leave(f"called {event.entity_id}")

    first, second = (Reservation.objects.create(status="confirmed") for _ in "ab")
    row = CallbackExecution.objects.order_by("pk").first()
    engine.pause(row)
    work()
    assert effects() == [f"called {second.pk}"]
    assert slots() == {}
    engine.unpause(row)
    work()
    assert effects() == [f"called {second.pk}", f"called {first.pk}"]
