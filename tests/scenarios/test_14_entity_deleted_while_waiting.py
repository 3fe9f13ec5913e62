"""14, an entity is deleted while something waits for it: the wait ends with a reason, and no timer of it fires."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from pydantic import BaseModel

from django_ai.automation import (
    agent,
    complete,
    event_workflow,
    get_wake,
    handler,
    on_event,
    on_event_cancelled,
    step,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events import occurrence
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Booking, Person
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def by_the_orm(entity) -> None:
    entity.delete()


def by_raw_sql(entity) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {entity._meta.db_table} WHERE id = %s", [entity.pk])


deleted = pytest.mark.parametrize("delete", [by_the_orm, by_raw_sql])


class Nothing(BaseModel):
    pass


def time_goes_on(clock, work) -> None:
    for _ in range(5):
        clock.tick(HOUR)
        work()
        poll_due(clock.now)
        work()


@deleted
def test_14_a_planned_run(delete, clock, work):
    @event_workflow("checkin_due", offset=-HOUR, name="planned")
    class Planned:
        Context = Nothing

        @step(start=True)
        def begin(self):
            leave("began")
            return complete()

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 3 * HOUR)
    assert WorkflowRun.objects.get().status == "waiting"
    delete(stay)
    time_goes_on(clock, work)
    assert effects() == []
    run = WorkflowRun.objects.get()
    assert (run.status, run.wake_at) == ("withdrawn", None)
    assert run.error == "Withdrawn before it was to start: its entity was deleted."
    assert Event.objects.get(event_name="checkin_due").status == "cancelled"


@deleted
def test_14_a_scheduled_event(delete, clock, work):
    @on_event("checkin_due", name="due")
    def due(event):
        leave("due")

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
    delete(stay)
    time_goes_on(clock, work)
    assert effects() == []
    found = Event.objects.get(event_name="checkin_due")
    assert (found.status, found.wake_at) == ("cancelled", None)


@pytest.fixture
def waiting(clock, work):
    """Start a run that waits at most two hours for an event of its own entity; return the entity."""

    @event_workflow("reservation_confirmed", name="waits")
    class Waits:
        Context = Nothing

        @step(start=True)
        def begin(self):
            if get_wake().reason == "first":
                return wait_for_event("guest_docs_uploaded", timeout=2 * HOUR)
            leave(get_wake().reason)
            return complete()

    stay = Reservation.objects.create(status="confirmed")
    work()
    assert WorkflowRun.objects.get().status == "suspended"
    return stay


def test_14_a_wait_for_its_own_event(waiting, clock, work):
    waiting.delete()
    run = WorkflowRun.objects.get()
    assert (run.status, run.wake_at, run.waits.count()) == ("cancelled", None, 0)
    assert "was deleted" in run.error
    time_goes_on(clock, work)
    assert effects() == []


def test_14_a_wait_for_its_own_event_that_went_behind_djangos_back(waiting, clock, work):
    """A delete by raw SQL is not noticed: the wait ends at its timeout, as if no event had come."""
    by_raw_sql(waiting)
    time_goes_on(clock, work)
    assert effects() == ["timeout"]
    assert WorkflowRun.objects.get().status == "completed"


@deleted
def test_14_a_callback_between_two_tries(delete, clock, work):
    @on_event("reservation_confirmed", name="stumbles")
    def stumbles(event):
        if CallbackExecution.objects.get().attempt == 0:
            raise RuntimeError("the first try stumbles")
        leave(event.entity.note if event.entity else "no entity")

    stay = Reservation.objects.create(status="confirmed", note="of the snapshot")
    work()
    assert CallbackExecution.objects.get().attempt == 1
    delete(stay)
    time_goes_on(clock, work)
    assert effects() == ["of the snapshot" if delete is by_the_orm else "no entity"]
    assert CallbackExecution.objects.get().status == "completed"


@deleted
def test_14_an_agent(delete, clock, work):
    """The agent stays active; its handlers with an offset from the entity's dates do not run."""

    @agent("companion", spawn_on="booking_created")
    class Companion:
        Context = Nothing

        @handler("booking_created")
        def created(self):
            leave("created")

        @handler("stay_due", offset=-HOUR)
        def soon(self):
            leave("soon")

        @handler("booking_deleted")
        def gone(self, event):
            leave(f"gone {event.entity.note}")

    stay = Booking.objects.create(guest=Person.objects.create(), starts_at=clock.now + 3 * HOUR, note="bye")
    work()
    delete(stay)
    time_goes_on(clock, work)
    assert effects() == (["created", "gone bye"] if delete is by_the_orm else ["created"])
    assert AgentRun.objects.get().status == "active"
    assert HandlerExecution.objects.filter(status="pending").count() == 0


@deleted
def test_14_before_a_worker_has_made_the_agents_context(delete, clock, work):
    @agent("companion", spawn_on="booking_created")
    class Companion:
        class Context(BaseModel):
            note: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(note=event.entity.note if event.entity else "nobody")

        @handler("booking_created")
        def created(self, ctx):
            leave(f"created {ctx.note}")

    stay = Booking.objects.create(guest=Person.objects.create(), note="bye")
    delete(stay)
    time_goes_on(clock, work)
    assert effects() == ["created bye" if delete is by_the_orm else "created nobody"]


def test_14_deleted_between_an_occurrence_and_its_notification_it_is_not_cancelled(clock, work, monkeypatch):
    """The process dies before it notifies, then the entity is deleted: only the callback without an offset runs."""

    @on_event("checkin_due", name="came")
    def came(event):
        leave("came")

    @on_event("checkin_due", offset=HOUR, name="later")
    def later(event):
        leave("later")

    @on_event_cancelled("checkin_due", name="cancelled")
    def cancelled(event):
        leave("cancelled")

    @workflow("listens")
    class Listens:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)
    work()
    clock.tick(HOUR)
    notify = occurrence.notify_subscribers
    monkeypatch.setattr(occurrence, "notify_subscribers", lambda *args: None)
    work()
    monkeypatch.setattr(occurrence, "notify_subscribers", notify)
    stay.delete()
    for _ in range(4):
        work()
        clock.tick(HOUR)
    assert effects() == ["came"]
