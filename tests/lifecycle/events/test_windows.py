"""Windows (``Debounce``, ``Batch``): several events are handed to one call or run, in their order, each once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.db import transaction
from pydantic import BaseModel

from django_ai.automation import (
    Batch,
    Debounce,
    EventDefinition,
    Retry,
    claims,
    complete,
    engine,
    event_workflow,
    get_wake,
    on_event,
    step,
    wait_for_event,
)
from django_ai.automation.events import notification, windows
from django_ai.automation.events.models import CallbackExecution, CollectedEvent, Event
from django_ai.automation.events.retention import prune_collected, prune_events
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Guest, Reservation
from tests.support.rows import change, effects, leave, the_execution, the_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
CHANGED = EventDefinition("changed", trigger="update", payload=lambda stay: {"note": stay.note})


@pytest.fixture(autouse=True)
def changed(declare: Callable[..., None]) -> None:
    declare(Reservation, CHANGED)


def collecting(**options) -> None:
    """Let a callback leave the notes of all events that it gets together."""

    @on_event("changed", name="collector", **options)
    def collector(events):
        leave("+".join(event.payload["note"] for event in events))


def collecting_workflow(**options) -> None:
    """Let a workflow leave the notes of all events that it gets together."""

    @event_workflow("changed", name="collector", **options)
    class Collector:
        class Context(BaseModel):
            notes: list[str]

        @classmethod
        def create_context(cls, events):
            return cls.Context(notes=[event.payload["note"] for event in events])

        @step(start=True)
        def first(self):
            leave("+".join(self.context.notes))
            return complete()


BOTH = pytest.mark.parametrize("declared", [collecting, collecting_workflow], ids=["callback", "workflow"])


# -- debounce ----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_debounce_waits_until_no_more_events_come(declared, clock, work):
    declared(debounce=Debounce(MINUTE))
    stay = Reservation.objects.create()
    for note in ("one", "two", "three"):
        change(stay, note=note)
        work()
        clock.tick(59 * SECOND)
    work()
    assert effects() == []
    clock.tick(SECOND)
    work()
    assert effects() == ["one+two+three"]
    change(stay, note="four")
    clock.tick(MINUTE)
    work()
    assert effects() == ["one+two+three", "four"]


@BOTH
def test_max_wait_ends_a_window_that_keeps_moving(declared, clock, work):
    declared(debounce=Debounce(MINUTE, max_wait=2 * MINUTE))
    stay = Reservation.objects.create()
    for number in range(5):
        change(stay, note=str(number))
        work()
        clock.tick(40 * SECOND)
    work()
    assert effects() == ["0+1+2+3"]  # at 0, 40, 80 and 120 s, when the window closed
    clock.tick(MINUTE)
    work()
    assert effects() == ["0+1+2+3", "4"]


@BOTH
def test_each_value_of_the_key_has_its_own_window(declared, clock, work):
    declared(debounce=Debounce(MINUTE, key="{{ instance.guest_id }}"))
    one, two = (Reservation.objects.create(guest=Guest.objects.create(name=name)) for name in "ab")
    for stay, note in ((one, "a1"), (two, "b1"), (one, "a2")):
        change(stay, note=note)
    clock.tick(MINUTE)
    work()
    assert sorted(effects()) == ["a1+a2", "b1"]


@BOTH
def test_the_events_of_one_transaction_and_of_several_entities_come_in_their_order(declared, clock, work):
    declared(debounce=Debounce(MINUTE))
    stays = [Reservation.objects.create() for _ in range(3)]
    with transaction.atomic():
        for number, stay in enumerate(stays):
            change(stay, note=str(number))
    clock.tick(MINUTE)
    work()
    assert effects() == ["0+1+2"]


# -- batch -------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_batch_is_due_as_soon_as_it_is_full(declared, clock, work):
    declared(batch=Batch(size=2, timeout=MINUTE))
    stay = Reservation.objects.create()
    for note in ("one", "two", "three"):
        change(stay, note=note)
    work()
    assert effects() == ["one+two"]
    clock.tick(59 * SECOND)
    work()
    assert effects() == ["one+two"]
    clock.tick(SECOND)
    work()
    assert effects() == ["one+two", "three"]


@BOTH
def test_a_batch_never_gets_more_than_its_size(declared, clock, work):
    declared(batch=Batch(size=2, timeout=MINUTE))
    stays = [Reservation.objects.create() for _ in range(5)]
    with transaction.atomic():
        for number, stay in enumerate(stays):
            change(stay, note=str(number))
    work()
    assert effects() == ["0+1", "2+3"]
    clock.tick(MINUTE)
    work()
    assert effects() == ["0+1", "2+3", "4"]


# -- nothing is lost ---------------------------------------------------------------------------------------------------


@BOTH
def test_a_process_that_dies_before_it_opens_the_window_loses_no_event(declared, clock, work, monkeypatch):
    declared(debounce=Debounce(MINUTE))
    stay = Reservation.objects.create()

    def dies(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(notification, "move_windows", dies)
        with pytest.raises(KeyboardInterrupt):
            change(stay, note="one")
    assert CollectedEvent.objects.count() == 1
    assert CallbackExecution.objects.count() + WorkflowRun.objects.count() == 0
    clock.tick(11 * SECOND)  # the lease of the dead process runs out
    work()
    clock.tick(MINUTE)
    work()
    assert effects() == ["one"]


@BOTH
def test_an_event_that_comes_while_a_window_closes_is_in_this_window_or_in_the_next(declared, clock, work, monkeypatch):
    declared(debounce=Debounce(MINUTE))
    one, two = Reservation.objects.create(), Reservation.objects.create()
    change(one, note="one")
    close, came = windows.close, []

    def closing(*arguments: object) -> None:
        if not came:
            came.append(1)
            change(two, note="two")  # committed before the window closes
        close(*arguments)  # type: ignore[arg-type]
        if len(came) == 1:
            came.append(2)
            change(one, note="three")

    from django_ai.automation.events import execution
    from django_ai.automation.workflows import window_runs

    monkeypatch.setattr(execution, "close", closing)
    monkeypatch.setattr(window_runs, "close", closing)
    clock.tick(MINUTE)
    work()
    clock.tick(2 * MINUTE)
    work()
    assert effects() == ["one+two", "three"]


@BOTH
def test_a_window_that_is_handled_again_gets_the_same_events(declared, clock, work, monkeypatch):
    """The worker dies after it has closed the window: another one handles the events that were assigned."""
    declared(debounce=Debounce(MINUTE))
    stay = Reservation.objects.create()
    change(stay, note="one")
    from django_ai.automation.events import execution
    from django_ai.automation.workflows import window_runs

    def dies(*arguments: object) -> None:
        raise KeyboardInterrupt

    clock.tick(MINUTE)
    with monkeypatch.context() as patch:
        patch.setattr(execution, "events_of", dies)
        patch.setattr(window_runs, "events_of", dies)
        with pytest.raises(KeyboardInterrupt):
            work()
    change(stay, note="two")
    clock.tick(11 * SECOND)
    work()
    assert effects() == ["one"]
    clock.tick(MINUTE)
    work()
    assert effects() == ["one", "two"]


def test_a_row_that_was_deleted_while_its_window_was_open_comes_back(clock, work):
    collecting(debounce=Debounce(MINUTE))
    change(Reservation.objects.create(), note="one")
    CallbackExecution.objects.all().delete()
    windows.reopen_lost_windows(TimeSlice(clock()))
    end = the_execution().wake_at
    clock.tick(30 * SECOND)
    windows.reopen_lost_windows(TimeSlice(clock()))
    assert the_execution().wake_at == end == clock() + 30 * SECOND  # the reconciliation moves no window
    clock.tick(MINUTE)
    work()
    assert effects() == ["one"]


def test_a_rolled_back_attempt_gets_all_events_again(clock, work):
    @on_event("changed", name="collector", debounce=Debounce(MINUTE), retry=Retry(max_attempts=2))
    def collector(events):
        leave(str(len(events)))
        if the_execution().attempt == 0:
            raise RuntimeError

    stay = Reservation.objects.create()
    for note in ("one", "two"):
        change(stay, note=note)
    clock.tick(MINUTE)
    work()
    clock.tick(SECOND)
    work()
    assert effects() == ["2"]


# -- from outside ------------------------------------------------------------------------------------------------------


def test_a_run_that_is_cancelled_takes_what_waits_with_it_and_the_next_event_opens_a_window(clock, work):
    collecting_workflow(debounce=Debounce(MINUTE))
    stay = Reservation.objects.create()
    change(stay, note="one")
    assert engine.cancel(the_run())
    change(stay, note="two")
    clock.tick(MINUTE)
    work()
    assert effects() == ["two"]


def test_a_claimed_event_is_left_out(clock, work):
    collecting_workflow(debounce=Debounce(MINUTE))

    @event_workflow("changed", name="holder", ignores_claims=True)
    class Holder:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            claims.hold("changed", {"note": "two"})
            return wait_for_event("never", match={})

    stay, other = Reservation.objects.create(), Reservation.objects.create()
    change(stay, note="one")
    change(other, note="two")
    clock.tick(MINUTE)
    work()
    assert effects() == ["one"]


def test_a_run_waits_for_no_event_of_its_own_window(clock, work):
    @event_workflow("changed", name="collector", debounce=Debounce(MINUTE))
    class Collector:
        class Context(BaseModel):
            count: int

        @classmethod
        def create_context(cls, events):
            return cls.Context(count=len(events))

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["note"])
                return complete()
            leave(str(self.context.count))
            return wait_for_event("changed", match={})

    stay = Reservation.objects.create()
    for note in ("one", "two"):
        change(stay, note=note)
    clock.tick(MINUTE)
    work()
    run = WorkflowRun.objects.get(status="suspended")
    change(stay, note="three")
    work()
    run.refresh_from_db()
    assert (effects(), run.status) == (["2", "three"], "completed")


def test_the_reason_says_what_an_open_window_waits_for(clock):
    collecting(debounce=Debounce(MINUTE))
    collecting_workflow(debounce=Debounce(MINUTE))
    change(Reservation.objects.create(), note="one")
    assert the_execution().waits_for(clock()).startswith("the end of its window")
    assert the_run().waits_for(clock()).startswith("the end of its window")


def test_code_that_no_longer_collects_parks_the_window_until_it_does_again(clock, work):
    from django_ai.automation.events import callbacks

    collecting(debounce=Debounce(MINUTE))
    stay = Reservation.objects.create()
    for note in ("one", "two"):
        change(stay, note=note)
    (declared,) = [each for each in callbacks.all_callbacks() if each.name == "collector"]
    callbacks.unregister(declared)
    on_event("changed", name="collector")(lambda event: leave("alone"))
    clock.tick(MINUTE)
    work()
    row = the_execution()
    assert row.status == "parked"
    assert "no longer declares debounce= or batch=" in row.error
    for each in callbacks.all_callbacks():
        if each.name == "collector":
            callbacks.unregister(each)
    callbacks.register(declared)
    clock.tick(DAY)
    work()
    assert effects() == ["one+two"]


def test_a_key_that_raises_parks_the_event_with_the_reason(clock, work):
    collecting(debounce=Debounce(MINUTE, key="{{ instance.nothing }}"))
    change(Reservation.objects.create(), note="one")
    for _ in range(5):
        clock.tick(MINUTE)
        work()
    event = Event.objects.get(declared_as="changed", trigger="update")
    assert event.status == "parked"
    assert "nothing" in event.error


# -- retention ---------------------------------------------------------------------------------------------------------


def test_events_stay_while_a_window_needs_them(clock, work):
    collecting(debounce=Debounce(60 * DAY))
    stay = Reservation.objects.create()
    change(stay, note="one")
    change(stay, note="two")
    clock.tick(50 * DAY)
    assert prune_events(TimeSlice(clock())).done == 0
    assert prune_collected(TimeSlice(clock())).done == 0
    clock.tick(10 * DAY)
    work()
    assert effects() == ["one+two"]
    clock.tick(50 * DAY)
    assert prune_collected(TimeSlice(clock())).done == 2


# -- checks ------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_key_of_an_unknown_field_is_an_error_of_the_checks(declared):
    declared(debounce=Debounce(MINUTE, key="{{ instance.gest_id }}"))
    (problem,) = [each for each in run_checks() if each.id == "automation.E116"]
    assert "'gest_id'" in problem.msg
    assert "Did you mean 'guest_id'?" in str(problem.hint)
