"""``event.fire_now()`` and ``event.move(at)``: a pending event occurs at another time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, agent, emit, event_workflow, handler, on_event
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, NaiveDatetimeError, StateError
from django_ai.automation.workflows.core import complete, engine, step, wait_for_event, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.free_events import PAID, hear, paid
from tests.support.rows import change, effects, event_of, leave, status, the_run
from tests.support.scheduled_events import DAY, HOUR, book

pytestmark = pytest.mark.django_db(transaction=True)


def hears(*offsets: timedelta | None) -> None:
    """Leave each offset behind when it comes."""
    for offset in offsets:

        @on_event("checkin_due", offset=offset, name=f"at {offset}")
        def heard(event, offset=offset):
            leave(f"at {offset}")


@pytest.mark.exact_times
def test_it_occurs_now_and_its_offsets_keep_their_dates(clock, work):
    hears(None, -HOUR, 2 * HOUR)
    stay = book(clock, DAY)
    event = event_of(stay, "checkin_due")
    date = event.at
    assert event.fire_now() is True
    work()
    event.refresh_from_db()
    assert (event.status, event.at, event.occurred_at) == ("processed", date, clock())
    assert event.position is not None
    assert effects() == ["at None"]
    work(date - HOUR)
    work(date)
    work(date + 2 * HOUR)
    assert effects() == ["at None", f"at {-HOUR}", f"at {2 * HOUR}"]
    stay.save()
    work(date + DAY)
    assert len(effects()) == 3


def test_every_subscriber_is_notified_as_usual(clock, work):
    @event_workflow("checkin_due", name="welcome")
    class Welcome:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def first(self):
            leave("run")
            return complete()

    @workflow("waits")
    class Waits:
        class Context(BaseModel):
            stay: int

        @step(start=True)
        def first(self):
            return wait_for_event("checkin_due", match={"pk": "{{ ctx.stay }}"}, then=self.after)

        @step()
        def after(self):
            leave("wait")
            return complete()

    @agent("watcher", match={"pk": "{{ ctx.stay }}"})
    class Watcher:
        class Context(BaseModel):
            stay: int

        @handler("checkin_due")
        def due(self, event):
            leave("agent")

    stay = book(clock, DAY)
    engine.start("waits", stay=stay.pk)
    AgentManager.spawn("watcher", stay=stay.pk)
    work()
    event_of(stay, "checkin_due").fire_now()
    work()
    assert sorted(effects()) == ["agent", "run", "wait"]


def test_a_save_before_the_worker_comes_changes_nothing(clock, work):
    hears(None)
    stay = book(clock, DAY)
    event_of(stay, "checkin_due").fire_now()
    change(stay, checkin_at=clock() + 3 * DAY)
    work()
    assert effects() == ["at None"]


def test_a_condition_that_turns_false_keeps_it_from_occurring(clock, work):
    hears(None)
    stay = book(clock, DAY)
    event = event_of(stay, "checkin_due")
    event.fire_now()
    Reservation.objects.filter(pk=stay.pk).update(status="cancelled")
    work()
    assert (effects(), status(event)) == ([], "pending")
    with pytest.raises(StateError, match="cannot occur, because its condition is false"):
        event.fire_now()


def test_firing_twice_and_what_is_due_anyway(clock, work):
    hears(None)
    event = event_of(book(clock, DAY), "checkin_due")
    assert [event.fire_now(), event.fire_now()] == [True, False]
    due = event_of(book(clock, -HOUR), "checkin_due")
    assert due.fire_now() is False
    work()
    assert effects() == ["at None"] * 2


def test_what_is_over_or_has_no_date_is_refused(clock, work):
    hears(None)
    stay = book(clock, DAY)
    event = event_of(stay, "checkin_due")
    change(stay, checkin_at=None)
    with pytest.raises(StateError, match="has no date: 'checkin_at' is NULL"):
        event.fire_now()
    change(stay, checkin_at=clock() + DAY)
    event.fire_now()
    work()
    with pytest.raises(StateError, match=r"has occurred at 2030-01-07 .*, and occurs once"):
        event.fire_now()
    other = event_of(book(clock, DAY), "checkin_due")
    other.cancel()
    with pytest.raises(StateError, match=r"is cancelled\. Only a pending event can occur"):
        other.fire_now()
    Event.objects.filter(pk=other.pk).delete()
    with pytest.raises(StateError, match="was removed"):
        other.fire_now()


# -- move --------------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_an_event_without_an_entity_moves_with_its_offsets_and_runs(clock, work):
    hear(paid())
    hear(PAID, "hour after", offset=HOUR)

    @event_workflow(PAID, name="before", offset=-HOUR)
    class Before:
        class Context(BaseModel):
            n: int

        @step(start=True)
        def first(self):
            leave("before")
            return complete()

    event = emit(PAID, {"n": 1}, at=clock() + DAY)
    assert event.move(clock() + 3 * DAY) is True
    assert event.move(clock() + 3 * DAY) is False
    assert the_run(name="before").wake_at == clock() + 3 * DAY - HOUR
    work(clock() + 2 * DAY)
    assert effects() == []
    event.move(clock() + 2 * HOUR)
    for hours in (1, 2, 3):
        work(clock() + hours * HOUR)
    assert effects() == ["before", "heard {'n': 1}", "hour after {'n': 1}"]
    assert WorkflowRun.objects.filter(name="before").count() == 1


def test_a_date_in_the_past_is_due_at_once_and_a_moved_one_is_no_longer_fired(clock, work):
    hear(paid())
    event = emit(PAID, {"n": 1}, at=clock() + DAY)
    event.move(clock() - HOUR)
    work()
    assert effects() == ["heard {'n': 1}"]
    other = emit(PAID, {"n": 2}, at=clock() + DAY)
    other.fire_now()
    other.move(clock() + 2 * DAY)
    work()
    assert (len(effects()), other.status) == (1, "pending")


def test_an_event_of_an_entity_names_its_field(clock):
    stay = book(clock, DAY)
    with pytest.raises(DefinitionError, match=r"follows app\.reservation\.checkin_at: change that field"):
        event_of(stay, "checkin_due").move(clock() + 2 * DAY)
    with pytest.raises(DefinitionError, match="has no date: it occurs with a save of its entity"):
        event_of(stay, "reservation_confirmed").move(clock() + 2 * DAY)


def test_what_has_occurred_and_a_naive_date_are_refused(clock, work):
    hear(paid())
    event = emit(PAID, {"n": 1}, at=clock() + DAY)
    with pytest.raises(NaiveDatetimeError):
        event.move((clock() + DAY).replace(tzinfo=None))
    event.fire_now()
    work()
    with pytest.raises(StateError, match="has occurred at"):
        event.move(clock() + DAY)
