"""Scenario 28: automations that trigger themselves without end are parked or failed with ``EventStormError``.

All other automations continue. A chain that pauses until a later date each time, such as a daily one, is not a storm,
however long it runs.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    agent,
    complete,
    engine,
    event_workflow,
    goto,
    handler,
    on_event,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.core import run_subflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Reservation, Room
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)
CAP = 5


@pytest.fixture(autouse=True)
def low_cap(settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": CAP}


class Nothing(BaseModel):
    pass


@pytest.fixture
def bystander():
    @workflow("bystander")
    class Bystander:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            leave("bystander")
            return complete()

    return lambda: engine.start("bystander")


def test_28_callbacks_that_feed_themselves(work, bystander):
    @on_event("room_cleaned", name="again")
    def again(event):
        Room.objects.create(number=str(Room.objects.count()), is_clean=True)

    Room.objects.create(number="0", is_clean=True)
    bystander()
    work()
    assert Room.objects.count() == CAP + 2
    parked = Event.objects.get(status="parked")
    assert "EventStormError" in parked.error
    assert "MAX_DEPTH" in parked.error
    assert effects() == ["bystander"]
    parked.resume()  # an operator may resume it: the chain then grows by one link
    work()
    assert Event.objects.filter(status="parked").count() == 1


def test_28_runs_that_start_runs(work, bystander):
    @workflow("again")
    class Again:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            engine.start("again")
            return complete()

    engine.start("again")
    bystander()
    work()
    runs = list(WorkflowRun.objects.filter(name="again").order_by("pk"))
    assert [run.status for run in runs] == ["completed"] * CAP + ["failed"]
    assert "EventStormError" in runs[-1].error
    assert "'MAX_DEPTH'" in runs[-1].error
    assert effects() == ["bystander"]


def test_28_subflows_without_end(work):
    @workflow("deeper")
    class Deeper:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            return run_subflow("deeper", then=self.second)

        @step()
        def second(self):
            return complete()

    engine.start("deeper")
    work()
    statuses = list(WorkflowRun.objects.order_by("pk").values_list("status", flat=True))
    assert statuses[-1] == "failed"
    assert len(statuses) <= CAP + 2
    assert not WorkflowRun.objects.unfinished().exists()  # each parent was notified


def test_28_runs_and_events_in_a_circle(work):
    @event_workflow("room_cleaned", name="cleaner")
    class Cleaner:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            return goto(self.second)

        @step()
        def second(self):
            Room.objects.create(number=str(Room.objects.count()), is_clean=True)
            return complete()

    Room.objects.create(number="0", is_clean=True)
    work()
    assert Room.objects.count() <= CAP + 2
    assert "EventStormError" in Event.objects.get(status="parked").error


def test_28_a_run_that_waits_for_what_it_causes(work):
    """A run that waits for events that it causes is stopped: the chain leads through the events that wake it."""

    @workflow("echo")
    class Echo:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            return wait_for_event("document_uploaded", match={}, then=self.second)

        @step()
        def second(self):
            Room.objects.create(number=str(Room.objects.count()), is_clean=True)
            return goto(self.first)

    @on_event("room_cleaned", name="answer")
    def answer(event):
        Document.objects.create(reservation=Reservation.objects.get())

    run = engine.start("echo")
    work()
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert Room.objects.count() <= CAP
    assert "EventStormError" in Event.objects.get(status="parked").error
    run.refresh_from_db()
    assert run.status == "suspended"
    Document.objects.create(reservation=Reservation.objects.get())  # an event from outside starts a new chain
    work()
    assert Event.objects.filter(status="parked").count() == 2


def test_28_agents_that_feed_themselves(work, bystander):
    @agent("again", spawn_on="room_cleaned")
    class Again:
        class Context(Nothing):
            pass

        @handler("room_cleaned")
        def on_cleaned(self, ctx):
            Room.objects.create(number=str(Room.objects.count()), is_clean=True)

    Room.objects.create(number="0", is_clean=True)
    bystander()
    work()
    assert Room.objects.count() <= CAP + 2
    assert "EventStormError" in Event.objects.get(status="parked").error
    assert effects() == ["bystander"]


def test_28_agents_that_spawn_agents_for_one_event(work):
    @agent("clone")
    class Clone:
        class Context(Nothing):
            pass

        @handler("room_cleaned")
        def on_cleaned(self, ctx, event):
            AgentManager.spawn("clone", event=event)

        @classmethod
        def create_context(cls, event=None):
            return cls.Context()

    room = Room.objects.create(number="0", is_clean=True)
    AgentManager.spawn("clone", event=Event.objects.of(room).get(event_name="room_cleaned"))
    work()
    assert AgentRun.objects.count() <= CAP + 2
    failed = HandlerExecution.objects.get(status="failed")
    assert "EventStormError" in failed.error


def test_28_a_run_that_sleeps_until_the_past_is_a_storm(clock, work):
    @workflow("never rests")
    class NeverRests:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            return sleep(until=timezone.now() - DAY, then=self.second)

        @step()
        def second(self):
            engine.start("never rests")
            return complete()

    engine.start("never rests")
    work()
    assert "EventStormError" in WorkflowRun.objects.get(status="failed").error
    assert WorkflowRun.objects.count() == CAP + 1


@pytest.mark.parametrize("way", ["sleep", "timeout"])
def test_28_a_chain_of_a_run_a_day_is_no_storm(way, clock, work):
    @workflow("daily")
    class Daily:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            if way == "sleep":
                return sleep(DAY, then=self.second)
            return wait("never", timeout=DAY, on_timeout=self.second)

        @step()
        def second(self):
            return goto(self.third)

        @step()
        def third(self):
            leave("day")
            engine.start("daily")
            return complete()

    engine.start("daily")
    for _ in range(4 * CAP):
        work()
        clock.tick(DAY)
    assert len(effects()) >= 4 * CAP - 2
    assert not WorkflowRun.objects.filter(status="failed").exists()


@pytest.mark.parametrize("offset", [None, -timedelta(hours=1), timedelta(hours=1)], ids=str)
def test_28_a_date_that_moves_on_each_day_is_no_storm(offset, clock, work, declare):
    declare(Reservation, EventDefinition("daily_due", date_field="checkin_at", rearm=True))

    @on_event("daily_due", offset=offset, name="tomorrow")
    def tomorrow(event):
        leave("day")
        stay = event.entity
        stay.checkin_at += DAY
        stay.save()

    Reservation.objects.create(checkin_at=clock() + DAY)
    for _ in range(4 * CAP):
        work()
        clock.tick(DAY)
    assert len(effects()) >= 4 * CAP - 3
    assert not Event.objects.filter(status="parked").exists()


def test_28_an_offset_that_is_always_past_is_a_storm(clock, work, declare):
    """If each date is in the future but its offset is in the past, the chain never pauses and is stopped."""
    declare(Reservation, EventDefinition("soon_due", date_field="checkin_at"))

    @on_event("soon_due", offset=-DAY, name="early")
    def early(event):
        Reservation.objects.create(checkin_at=clock() + timedelta(hours=1))

    Reservation.objects.create(checkin_at=clock() + timedelta(hours=1))
    work()
    assert Reservation.objects.count() <= CAP + 2
    assert "EventStormError" in Event.objects.get(status="parked").error


def test_28_an_offset_that_is_always_past_is_a_storm_of_runs_too(clock, work, declare):
    declare(Reservation, EventDefinition("soon_due", date_field="checkin_at"))

    @event_workflow("soon_due", offset=-DAY, name="early")
    class Early:
        class Context(Nothing):
            pass

        @step(start=True)
        def first(self):
            Reservation.objects.create(checkin_at=clock() + timedelta(hours=1))
            return complete()

    Reservation.objects.create(checkin_at=clock() + timedelta(hours=1))
    work()
    assert Reservation.objects.count() <= CAP + 2
    assert "EventStormError" in Event.objects.get(status="parked").error


def test_28_what_follows_a_day_after_is_no_storm(clock, work):
    @on_event("room_cleaned", offset=relativedelta(days=1), name="next")
    def following(event):
        leave("day")
        Room.objects.create(number=str(Room.objects.count()), is_clean=True)

    Room.objects.create(number="0", is_clean=True)
    for _ in range(4 * CAP):
        work()
        clock.tick(DAY)
    assert len(effects()) >= 4 * CAP - 2
    assert not Event.objects.filter(status="parked").exists()
    assert not CallbackExecution.objects.filter(status="failed").exists()
