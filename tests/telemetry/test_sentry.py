"""Sentry: exceptions with the names and ids of what ran, nothing twice, and check-ins of schedules."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    GiveUp,
    Retry,
    agent,
    complete,
    engine,
    fail,
    goto,
    handler,
    on_event,
    schedule,
    step,
    workflow,
)
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.queues import attempt as attempt_module
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.agents import Notes
from tests.support.front_desk import book

pytest.importorskip("sentry_sdk", reason="the extra [sentry] is not installed")

import sentry_sdk
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from django_ai.automation.contrib.telemetry import sentry

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"


class Kept(Transport):
    """Keeps what Sentry would send."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.items += [item.payload.json for item in envelope.items]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [each for each in self.items if "check_in_id" not in each]

    @property
    def check_ins(self) -> list[dict[str, Any]]:
        return [each for each in self.items if "check_in_id" in each]


@pytest.fixture(autouse=True)
def kept() -> Iterator[Kept]:
    transport = Kept()
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=transport,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[LoggingIntegration()],
    )
    sentry._config.cache_clear()
    sentry.connect()
    yield transport
    sentry.disconnect()
    sentry_sdk.init()


class Empty(BaseModel):
    pass


def test_an_exception_of_a_step_has_its_names_and_ids_and_is_an_error_at_the_end(kept, work, clock):
    @workflow("sentry:flow")
    class Flow:
        Context = Empty

        @step(start=True, retry=Retry(max_attempts=2, base_delay=timedelta(seconds=5)))
        def charge(self):
            raise LookupError("no card")

    run = engine.start(Flow)
    work()
    clock.tick(timedelta(minutes=1))
    work()
    first, last = kept.events
    assert [each["level"] for each in (first, last)] == ["warning", "error"]
    for number, event in enumerate((first, last), start=1):
        assert event["exception"]["values"][-1]["type"] == "LookupError"
        assert event["tags"]["automation.name"] == "sentry:flow"
        assert (event["tags"]["automation.kind"], event["tags"]["automation.part"]) == ("workflow", "charge")
        assert event["transaction"] == "sentry:flow charge"
        found = event["contexts"]["automation"]
        assert (found["row"], found["attempt"]) == (f"workflow:{run.pk}:charge", number)
        assert found["idempotency_key"]


def test_callbacks_and_handlers_have_scopes_of_their_own(kept, work):
    @on_event("booking_created", name="greet")
    def greet(event):
        sentry_sdk.set_tag("left", "behind")
        raise GiveUp("no greeting")

    @agent("sentry:agent", spawn_on="booking_created")
    class Answers:
        Context = Notes

        @handler("booking_created")
        def answer(self):
            raise GiveUp("no answer")

    book()
    work()
    events = {each["tags"]["automation.kind"]: each for each in kept.events}
    assert set(events) == {"callback", "handler"}
    assert len(kept.events) == 2
    assert (events["callback"]["tags"]["left"], events["callback"]["level"]) == ("behind", "error")
    assert "left" not in events["handler"]["tags"]
    assert events["handler"]["tags"]["automation.part"] == "answer"
    assert events["callback"]["contexts"]["automation"]["entity"]


def test_a_message_of_the_project_during_a_step_has_the_tags(kept, work):
    @workflow("sentry:says")
    class Says:
        Context = Empty

        @step(start=True)
        def go(self):
            sentry_sdk.capture_message("look at this")
            return complete()

    engine.start(Says)
    work()
    (event,) = kept.events
    assert event["tags"]["automation.name"] == "sentry:says"


def test_a_failure_without_an_exception_is_captured_once(kept, work):
    @workflow("sentry:fails")
    class Fails:
        Context = Empty

        @step(start=True)
        def go(self):
            return fail("no stock")

    run = engine.start(Fails)
    work()
    (event,) = kept.events
    assert event["message"] == f"{run} has failed for good: no stock"
    assert event["level"] == "error"


def test_a_parked_row_and_an_error_of_the_engine_are_captured(kept, work, monkeypatch):
    @workflow("sentry:gone")
    class Gone:
        Context = Empty

        @step(start=True)
        def go(self):
            return complete()

    run = engine.start(Gone)
    WorkflowRun.objects.filter(pk=run.pk).update(name="sentry:missing")
    work()
    (event,) = kept.events
    assert "is parked" in event["message"]
    assert event["tags"]["automation.name"] == "sentry:missing"

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("the engine")

    monkeypatch.setattr(attempt_module, "keep_lease_for", broken)
    engine.start(Gone)
    work()
    assert kept.events[-1]["exception"]["values"][-1]["type"] == "ZeroDivisionError"


def test_nothing_is_captured_where_it_is_not_connected(kept, work):
    sentry.disconnect()

    @on_event(CONFIRMED, retry=Retry(max_attempts=1))
    def fails(event):
        raise LookupError("no")

    Reservation.objects.create(status="confirmed")
    work()
    assert kept.items == []


# -- check-ins ---------------------------------------------------------------------------------------------------------


def fire(clock: Any, work: Any) -> None:
    """Let the schedule's next time come, at two in the morning."""
    ensure_rows(clock())
    clock.tick(datetime(2030, 1, 8, 2, tzinfo=UTC) - clock.now)
    work()


def test_a_scheduled_function_checks_in_and_out_with_its_timetable(kept, clock, work):
    @schedule("0 2 * * *", name="nightly audit", timezone="Europe/Berlin")
    def audit():
        assert [each["status"] for each in kept.check_ins] == ["in_progress"]

    ensure_rows(clock())
    clock.tick(timedelta(hours=14))
    work()
    begun, ended = kept.check_ins
    assert (begun["status"], ended["status"]) == ("in_progress", "ok")
    assert begun["check_in_id"] == ended["check_in_id"]
    assert begun["monitor_slug"] == "nightly-audit"
    assert begun["monitor_config"] == {
        "schedule": {"type": "crontab", "value": "0 2 * * *"},
        "timezone": "Europe/Berlin",
    }


def test_a_scheduled_function_that_fails_checks_in_as_an_error(kept, clock, work):
    @schedule(timedelta(minutes=5), name="fetch", retry=Retry(max_attempts=1))
    def fetch():
        raise LookupError("no mail")

    ensure_rows(clock())
    clock.tick(timedelta(minutes=5))
    work()
    assert [each["status"] for each in kept.check_ins] == ["in_progress", "error"]
    assert kept.check_ins[0]["monitor_config"] == {"schedule": {"type": "interval", "value": 5, "unit": "minute"}}


def test_a_scheduled_workflow_checks_in_at_its_beginning_and_its_end(kept, clock, work):
    @schedule("0 2 * * *", name="steps", timezone="UTC")
    @workflow("sentry:scheduled")
    class Scheduled:
        Context = Empty

        @step(start=True)
        def first(self):
            return goto(self.last)

        @step()
        def last(self):
            return complete()

    fire(clock, work)
    assert [each["status"] for each in kept.check_ins] == ["in_progress", "ok"]
    assert len({each["check_in_id"] for each in kept.check_ins}) == 1


def test_what_no_schedule_has_started_checks_in_nowhere(kept, work):
    @on_event(CONFIRMED)
    def greet(event):
        pass

    Reservation.objects.create(status="confirmed")
    work()
    assert kept.check_ins == []


def test_the_name_of_a_monitor_is_one_that_sentry_accepts():
    assert sentry.monitor_slug("Nächtlich: Prüfen/heute") == "n-chtlich--pr-fen-heute"
    assert len(sentry.monitor_slug("x" * 99)) == 50
