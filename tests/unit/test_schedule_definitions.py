"""``@schedule``: what it refuses at import, and the arithmetic of timetables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import complete, schedule, step, workflow
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.values import timetable as module
from django_ai.automation.values.timetable import Timetable, timetable

MINUTE = timedelta(minutes=1)
NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("when", "options", "message"),
    [
        ("0 25 * * *", {}, "no cron expression"),
        ("tomorrow", {}, "no cron expression"),
        ("", {}, "must be a cron expression"),
        (5, {}, "must be a cron expression"),
        (timedelta(0), {}, "an interval of a second or more"),
        (MINUTE, {"timezone": "Europe/Berlin"}, "an interval has none"),
        ("0 2 * * *", {"timezone": "Europe/Berlim"}, "Did you mean 'Europe/Berlin'"),
        ("0 2 * * *", {"catch_up": -1}, "catch_up=-1"),
        ("0 2 * * *", {"catch_up": True}, "catch_up=True"),
        ("0 2 * * *", {"overlap": "skipp"}, "Did you mean 'skip'"),
        ("0 2 * * *", {"arguments": [1]}, "must be a dict"),
        ("0 2 * * *", {"retry": 3}, r"@schedule\('0 2 \* \* \*'\): retry=3 must be a Retry"),
        (MINUTE, {"timeout": 5}, r"@schedule\(.*\): timeout=5 must be a positive timedelta"),
    ],
)
def test_wrong_arguments_are_refused_at_import(when, options, message):
    with pytest.raises(DefinitionError, match=message):
        schedule(when, **options)


def test_a_class_that_is_no_workflow_is_refused():
    with pytest.raises(DefinitionError, match="Put @schedule above @workflow"):

        @schedule("0 2 * * *")
        class Plain:
            pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ledgr": "rooms"}, "arguments={'ledgr': 'rooms'}: Context has no field 'ledgr'. Did you mean 'ledger'?"),
        ({}, "arguments={}: .*Context requires 'ledger'."),
        (None, "Context requires 'ledger'."),
        ({"ledger": "rooms"}, ""),
    ],
)
def test_the_arguments_are_those_that_the_context_needs(arguments, message):
    @workflow("audit")
    class Audit:
        class Context(BaseModel):
            ledger: str
            scheduled_at: datetime
            schedule: str

        first = step(start=True)(lambda self: complete())

    if message:
        with pytest.raises(DefinitionError, match=message.replace("Context", ".*Context", 1)):
            schedule("0 2 * * *", arguments=arguments)(Audit)
    else:
        assert schedule("0 2 * * *", arguments=arguments)(Audit) is Audit


def test_what_create_context_takes_is_its_own_affair():
    @workflow("audit")
    class Audit:
        class Context(BaseModel):
            ledger: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(ledger=event.payload["book"])

        first = step(start=True)(lambda self: complete())

    assert schedule("0 2 * * *", arguments={"book": "rooms"})(Audit) is Audit


def test_a_function_that_needs_more_than_the_event_is_refused():
    with pytest.raises(DefinitionError, match=r"is called with \(event\)"):
        schedule("0 2 * * *")(lambda one, two: None)


def test_cron_needs_its_package(monkeypatch):
    monkeypatch.setattr(module, "CronSim", None)
    with pytest.raises(DefinitionError, match=r"django-ai-automation\[schedules\]"):
        timetable("0 2 * * *", None, "@schedule")


@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize("when", ["*/7 * * * *", 7 * MINUTE])
def test_the_last_times_between_two_moments(when, limit):
    times = Timetable(when)
    found = times.between(NOON, NOON + timedelta(hours=3), NOON, limit)
    every, each = [], times.after(NOON, NOON)
    while each is not None and each <= NOON + timedelta(hours=3):
        every.append(each)
        each = times.after(each, NOON)
    assert found == every[-limit:]
    assert len(found) == min(limit, len(every)) > 0


def test_the_end_belongs_to_the_times_and_the_start_does_not():
    times = Timetable("0 * * * *")
    assert times.between(NOON, NOON + 60 * MINUTE, NOON, 9) == [NOON + 60 * MINUTE]
