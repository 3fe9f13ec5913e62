"""Schedules: cron expressions and intervals, outages, clock changes, overlap, and what staff can do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.core.exceptions import ValidationError
from pydantic import BaseModel

from django_ai.automation import complete, schedule, step, wait, workflow
from django_ai.automation.events.models import Event, Schedule
from django_ai.automation.events.schedules import definitions
from django_ai.automation.events.schedules.firing import fire_now
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.queues.drain import drain
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.core import engine
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def row(name: str = "nightly") -> Schedule:
    return Schedule.objects.get(name=name)


def nightly(**options) -> None:
    @schedule("0 2 * * *", name="nightly", timezone="UTC", **options)
    def audit(event):
        leave(event.payload["scheduled_at"][:16])


def until(clock, moment: datetime, pace: timedelta = HOUR) -> None:
    """Let time pass, and workers work, until ``moment``."""
    while clock.now < moment:
        clock.tick(min(pace, moment - clock.now))
        drain()


# -- firing ------------------------------------------------------------------------------------------------------------


def test_a_function_is_called_at_each_time(clock):
    nightly()
    ensure_rows(clock())
    assert row().wake_at == datetime(2030, 1, 8, 2, tzinfo=UTC)
    until(clock, datetime(2030, 1, 10, 3, tzinfo=UTC))
    assert effects() == ["2030-01-08T02:00", "2030-01-09T02:00", "2030-01-10T02:00"]
    assert (row().fired, row().skipped, row().wake_at) == (3, 0, datetime(2030, 1, 11, 2, tzinfo=UTC))


def test_a_function_without_parameters_is_called_too(clock):
    @schedule(MINUTE, name="ping")
    def ping():
        leave("ping")

    ensure_rows(clock())
    clock.tick(MINUTE)
    drain()
    assert effects() == ["ping"]


def test_a_workflow_starts_with_its_arguments(clock):
    @schedule("30 2 * * *", arguments={"depth": 3})
    @workflow("night_audit")
    class NightAudit:
        class Context(BaseModel):
            depth: int
            scheduled_at: str

        @step(start=True)
        def first(self):
            leave(f"{self.context.depth} {self.context.scheduled_at[:16]}")
            return complete()

    ensure_rows(clock())
    until(clock, datetime(2030, 1, 8, 3, tzinfo=UTC))
    assert effects() == ["3 2030-01-08T01:30"]  # TIME_ZONE is Berlin


def test_an_interval_counts_from_the_first_row_and_does_not_drift(clock):
    @schedule(10 * MINUTE, name="tenth")
    def tenth(event):
        leave(event.payload["scheduled_at"][11:16])

    ensure_rows(clock())
    clock.tick(10 * MINUTE + timedelta(seconds=7))
    drain()
    assert row("tenth").wake_at == datetime(2030, 1, 7, 12, 20, tzinfo=UTC)
    assert effects() == ["12:10"]


def test_a_time_is_fired_once_whoever_performs_it(clock):
    nightly()
    ensure_rows(clock())
    clock.now = datetime(2030, 1, 8, 2, tzinfo=UTC)
    before = row()
    drain()
    # A worker whose answer was lost would perform the same time again.
    Schedule.objects.update(reached=before.reached, wake_at=clock.now)
    drain()
    assert effects() == ["2030-01-08T02:00"]
    assert Event.objects.filter(event_name__startswith="schedule:").count() == 1


# -- clock changes and outages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "times"),
    [
        (
            datetime(2030, 3, 29, 12, tzinfo=UTC),
            datetime(2030, 4, 1, 12, tzinfo=UTC),
            # Berlin 2:30 does not exist on the 31st: right after the change, at 3:00 summer time.
            ["2030-03-30T01:30", "2030-03-31T01:00", "2030-04-01T00:30"],
        ),
        (
            datetime(2030, 10, 25, 12, tzinfo=UTC),
            datetime(2030, 10, 28, 12, tzinfo=UTC),
            # Berlin 2:30 comes twice on the 27th: once, the first time.
            ["2030-10-26T00:30", "2030-10-27T00:30", "2030-10-28T01:30"],
        ),
    ],
    ids=["to summer time", "to winter time"],
)
def test_a_schedule_follows_the_wall_clock_of_its_zone(clock, start, end, times):
    @schedule("30 2 * * *", name="nightly", timezone="Europe/Berlin")
    def audit(event):
        leave(event.payload["scheduled_at"][:16])

    clock.now = start
    ensure_rows(clock())
    until(clock, end, 30 * MINUTE)
    assert effects() == times


@pytest.mark.parametrize(
    ("catch_up", "caught"),
    [(0, []), (1, ["10"]), (2, ["9", "10"]), (timedelta(hours=40), ["9", "10"]), (timedelta(days=9), ["8", "9", "10"])],
)
def test_after_an_outage_of_three_days_the_times_are_made_up_for_that_catch_up_asks_for(clock, catch_up, caught):
    nightly(catch_up=catch_up)
    ensure_rows(clock())
    clock.now = datetime(2030, 1, 10, 12, tzinfo=UTC)
    drain()
    assert [each[8:10].lstrip("0") for each in effects()] == caught
    assert row().skipped == 3 - len(caught)
    until(clock, datetime(2030, 1, 11, 3, tzinfo=UTC))
    assert effects()[-1] == "2030-01-11T02:00"
    assert len(effects()) == len(caught) + 1


# -- overlap -----------------------------------------------------------------------------------------------------------


def slow_workflow(overlap: str) -> None:
    @schedule("0 * * * *", overlap=overlap)
    @workflow("slow")
    class Slow:
        class Context(BaseModel):
            scheduled_at: str

        @step(start=True)
        def first(self):
            leave(self.context.scheduled_at[11:13])
            return wait("go", then=self.last)

        @step()
        def last(self):
            return complete()


@pytest.mark.parametrize(
    ("overlap", "meanwhile", "afterwards"),
    [("allow", ["13", "14", "15"], ["13", "14", "15"]), ("skip", ["13"], ["13"]), ("queue", ["13"], ["13", "15"])],
)
def test_overlap_says_what_happens_while_the_last_has_not_ended(clock, overlap, meanwhile, afterwards):
    slow_workflow(overlap)
    ensure_rows(clock())
    until(clock, datetime(2030, 1, 7, 15, 30, tzinfo=UTC), 10 * MINUTE)
    assert effects() == meanwhile
    engine.signal("go", run=WorkflowRun.objects.order_by("pk").first())
    until(clock, datetime(2030, 1, 7, 15, 50, tzinfo=UTC), 10 * MINUTE)
    assert effects() == afterwards


# -- from outside ------------------------------------------------------------------------------------------------------


def test_a_paused_schedule_fires_nothing_and_makes_nothing_up(clock):
    nightly(catch_up=5)
    ensure_rows(clock())
    row().pause(clock())
    assert row().waits_for(clock()) == "an operator, to unpause it"
    until(clock, datetime(2030, 1, 10, 12, tzinfo=UTC))
    assert effects() == []
    row().unpause(clock())
    until(clock, datetime(2030, 1, 11, 3, tzinfo=UTC))
    assert effects() == ["2030-01-11T02:00"]


def test_fire_now_is_one_more(clock):
    nightly()
    ensure_rows(clock())
    fire_now(row(), clock())
    drain()
    assert effects() == ["2030-01-07T12:00"]
    assert row().wake_at == datetime(2030, 1, 8, 2, tzinfo=UTC)


def test_staff_adds_a_schedule_of_a_workflow(clock):
    slow_workflow("allow")
    added = Schedule(name="by staff", target="slow", cron="15 * * * *", created_at=clock(), anchor=clock())
    added.full_clean()
    added.save()
    added.plan(clock())
    until(clock, datetime(2030, 1, 7, 12, 30, tzinfo=UTC), 5 * MINUTE)
    assert effects() == ["12"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cron": "0 25 * * *"}, "no cron expression"),
        ({"cron": ""}, "either a cron expression or an interval"),
        ({"cron": "0 2 * * *", "every": HOUR}, "either a cron expression or an interval"),
        ({"cron": "0 2 * * *", "timezone": "Europe/Berlim"}, "no such time zone"),
        ({"cron": "0 2 * * *", "arguments": [1]}, "dictionary"),
    ],
)
def test_staff_cannot_save_what_is_wrong(clock, fields, message):
    with pytest.raises(ValidationError, match=message):
        Schedule(name="wrong", target="slow", **fields).full_clean()


def test_a_changed_timetable_begins_from_now_on(clock):
    nightly(catch_up=5)
    ensure_rows(clock())
    clock.now = datetime(2030, 1, 9, 12, tzinfo=UTC)
    definitions.unregister(definitions.find_schedule("nightly"))

    @schedule("0 4 * * *", name="nightly", timezone="UTC", catch_up=5)
    def audit(event):
        leave(event.payload["scheduled_at"][:16])

    assert ensure_rows(clock()) == 1
    assert ensure_rows(clock()) == 0
    until(clock, datetime(2030, 1, 10, 5, tzinfo=UTC))
    assert effects() == ["2030-01-10T04:00"]


def test_a_schedule_whose_code_is_gone_is_parked_and_continues_when_it_is_back(clock):
    nightly()
    ensure_rows(clock())
    declared = definitions.find_schedule("nightly")
    definitions.unregister(declared)
    clock.now = datetime(2030, 1, 8, 2, tzinfo=UTC)
    drain()
    assert "no @schedule is called 'nightly'" in row().waits_for(clock())
    definitions.register(declared)
    until(clock, datetime(2030, 1, 8, 4, tzinfo=UTC), 10 * MINUTE)
    assert effects() == ["2030-01-08T02:00"]


# -- in tests of a project ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedules", [True, False])
def test_the_time_machine_fires_declared_schedules_on_request(schedules):
    nightly()
    with time_machine("2030-01-07T12:00+00:00", schedules=schedules) as machine:
        machine.advance(days=2)
    assert effects() == (["2030-01-08T02:00", "2030-01-09T02:00"] if schedules else [])
