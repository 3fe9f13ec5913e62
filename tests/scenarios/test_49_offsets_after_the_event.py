"""Scenario 49: a condition turns false after the event has occurred.

Later offsets still fire, unless they were declared with ``recheck=True``. The row stores why an offset was skipped.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import agent, handler, on_event
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.core import complete, event_workflow, step
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.front_desk import book
from tests.support.rows import change, effects, event_of, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
IMMEDIATE, SCHEDULED = "reservation_confirmed", "checkin_due"


def occurred(clock, work, event_name: str) -> tuple[Reservation, Event]:
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock())
    work()
    event = event_of(stay, event_name)
    assert event.status == "processed"
    return stay, event


def turn_false(stay: Reservation, how: str) -> None:
    stay.status = "cancelled"
    if how == "save":
        stay.save()
    else:
        Reservation.objects.filter(pk=stay.pk).update(status="cancelled")


def flow(event_name: str, **options) -> None:
    @event_workflow(event_name, name="follow_up", **options)
    class FollowUp:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            leave("run")
            return complete()


@pytest.mark.parametrize("how", ["save", "update"])
@pytest.mark.parametrize("event_name", [IMMEDIATE, SCHEDULED])
def test_49_a_later_offset_still_fires(event_name, how, clock, work):
    on_event(event_name, offset=HOUR, name="later")(lambda event: leave("callback"))
    flow(event_name, offset=2 * HOUR)
    stay, _ = occurred(clock, work, event_name)
    turn_false(stay, how)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["callback"]
    clock.tick(HOUR)
    work()
    assert effects() == ["callback", "run"]
    clock.tick(3 * DAY)
    work()
    event = event_of(stay, event_name)
    assert (event.wake_at, event.error, the_run().status, CallbackExecution.objects.count()) == (
        None,
        "",
        "completed",
        1,
    )


@pytest.mark.parametrize("how", ["save", "update"])
@pytest.mark.parametrize("event_name", [IMMEDIATE, SCHEDULED])
def test_49_recheck_asks_again_and_the_record_says_what_was_skipped(event_name, how, clock, work):
    on_event(event_name, offset=HOUR, recheck=True, name="asks")(lambda event: leave("asks"))
    on_event(event_name, offset=HOUR, name="keeps")(lambda event: leave("keeps"))
    flow(event_name, offset=2 * HOUR, recheck=True)
    stay, _ = occurred(clock, work, event_name)
    turn_false(stay, how)
    for _ in range(3):
        clock.tick(HOUR)
        work()
    assert effects() == ["keeps"]
    run = the_run()
    assert run.status == "cancelled"
    assert "recheck=True" in run.error
    clock.tick(3 * DAY)
    work()
    event = event_of(stay, event_name)
    assert (event.status, event.wake_at, effects()) == ("processed", None, ["keeps"])
    assert event.error.startswith("Skipped +1h: recheck=True")


def test_49_recheck_fires_when_the_condition_is_true_again_within_the_grace(clock, work):
    on_event(SCHEDULED, offset=HOUR, recheck=True, name="asks")(lambda event: leave("asks"))
    flow(SCHEDULED, offset=2 * HOUR, recheck=True)
    stay, _ = occurred(clock, work, SCHEDULED)
    turn_false(stay, "save")
    clock.tick(HOUR + HOUR / 2)
    work()
    assert effects() == []
    stay.status = "confirmed"
    stay.save()
    work()
    assert effects() == ["asks"]
    clock.tick(HOUR)
    work()
    assert (effects(), event_of(stay, SCHEDULED).error) == (["asks", "run"], "")


def test_49_recheck_that_turns_true_only_after_the_grace(clock, work):
    on_event(SCHEDULED, offset=HOUR, recheck=True, name="asks")(lambda event: leave("asks"))
    on_event(SCHEDULED, offset=2 * HOUR, name="keeps")(lambda event: leave("keeps"))
    stay, _ = occurred(clock, work, SCHEDULED)
    turn_false(stay, "save")
    clock.tick(3 * DAY)  # no worker runs in this time
    stay.status = "confirmed"
    stay.save()
    work()
    assert effects() == ["keeps"]
    assert event_of(stay, SCHEDULED).error.startswith("Skipped +1h: recheck=True")


def test_49_a_handler_of_an_agent(clock, work):
    @agent("journey", spawn_on="booking_created", match={"id": "{{ ctx.booking_id }}"}, singleton=True)
    class Journey:
        class Context(BaseModel):
            booking_id: int

        @classmethod
        def create_context(cls, event):
            return cls.Context(booking_id=event.entity.id)

        @handler("stay_due", offset=HOUR)
        def keeps(self):
            leave("keeps")

        @handler("stay_due", offset=HOUR, recheck=True)
        def asks(self):
            leave("asks")

    kept, dropped = book(starts_at=clock.now + HOUR), book(starts_at=clock.now + 4 * HOUR)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == []
    clock.tick(HOUR)
    work()
    assert sorted(effects()) == ["asks", "keeps"]
    clock.tick(2 * HOUR)
    work()
    change(dropped, status="cancelled")
    clock.tick(3 * DAY)
    work()
    assert sorted(effects()) == ["asks", "keeps", "keeps"]
    event = Event.objects.get(event_name="stay_due", entity_id=str(dropped.pk))
    assert event.error.startswith("Skipped +1h: recheck=True")
    assert Event.objects.get(event_name="stay_due", entity_id=str(kept.pk)).error == ""


@pytest.mark.parametrize("event_name", [IMMEDIATE, SCHEDULED])
def test_49_a_deletion_says_what_it_skipped(event_name, clock, work):
    on_event(event_name, offset=HOUR, name="later")(lambda event: leave("callback"))
    flow(event_name, offset=2 * HOUR)
    stay, event = occurred(clock, work, event_name)
    stay.delete()
    clock.tick(3 * HOUR)
    work()
    event.refresh_from_db()
    assert (event.status, event.error) == ("processed", "Skipped +1h: its entity was deleted.")
    run = WorkflowRun.objects.get()
    assert (run.status, effects()) == ("cancelled", [])
    assert "was deleted" in run.error


def test_49_before_the_event_a_false_condition_takes_everything(clock, work):
    on_event(SCHEDULED, offset=HOUR, name="later")(lambda event: leave("callback"))
    flow(SCHEDULED, offset=2 * HOUR)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)
    turn_false(stay, "save")
    run = WorkflowRun.objects.get()
    assert (run.status, run.wake_at) == ("withdrawn", None)
    assert "the condition of its event is no longer true" in run.error
    clock.tick(3 * DAY)
    work()
    event = event_of(stay, SCHEDULED)
    assert (event.status, event.wake_at, effects()) == ("expired", None, [])
    assert event.error


@pytest.mark.parametrize("declare", [on_event, handler, event_workflow])
def test_49_recheck_without_an_offset_is_refused(declare):
    with pytest.raises(DefinitionError, match=r"recheck=True needs offset="):
        declare("checkin_due", recheck=True)
    with pytest.raises(DefinitionError, match=r"recheck='yes' must be True or False"):
        declare("checkin_due", offset=HOUR, recheck="yes")
