"""Structured logs: each record names what the engine works at in its thread, without a query."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from django_ai.automation import GiveUp, agent, complete, engine, fail, goto, handler, on_event, step, workflow
from django_ai.automation.contrib.telemetry.logs import AutomationFilter
from django_ai.automation.queues import observing
from django_ai.automation.queues.causation import CurrentRun
from tests.apps.reservations.models import Reservation
from tests.support.agents import Notes
from tests.support.front_desk import book
from tests.support.rows import event_of

pytestmark = pytest.mark.django_db(transaction=True)

logger = logging.getLogger("a.project")


class Kept(logging.Handler):
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def one(self, message: str) -> dict[str, object]:
        """Return the attributes of the one record with ``message`` in it."""
        (record,) = [each for each in self.records if message in each.getMessage()]
        found = {name: value for name, value in record.__dict__.items() if name.startswith("automation")}
        assert json.loads(json.dumps(found)) == found
        return found


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    handler.addFilter(AutomationFilter())
    loggers = [logger, logging.getLogger("django_ai.automation")]
    for each in loggers:
        each.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    for each in loggers:
        each.removeHandler(handler)


def test_outside_the_engine_a_record_passes_and_names_nothing(kept):
    logger.info("a request")
    assert kept.one("a request") == {"automation": ""}


def test_a_step_names_its_run_step_and_attempt(kept, work):
    @workflow("logs:steps")
    class Steps:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            logger.info("in first")
            return goto(self.second)

        @step()
        def second(self):
            logger.info("in second")
            return complete()

    run = engine.start(Steps)
    work()
    assert kept.one("in first") == {
        "automation": f"workflow:{run.pk}:first",
        "automation_kind": "workflow",
        "automation_id": str(run.pk),
        "automation_name": "logs:steps",
        "automation_part": "first",
        "automation_attempt": 1,
        "automation_key": kept.one("in first")["automation_key"],
        "automation_depth": 1,
    }
    assert kept.one("in second")["automation_part"] == "second"
    assert kept.one("in second")["automation_key"] != kept.one("in first")["automation_key"]


def test_a_callback_names_its_entity_and_the_chain_of_its_causes(kept, work):
    @workflow("logs:cause")
    class Cause:
        class Context(BaseModel):
            pass

        @step(start=True)
        def save(self):
            Reservation.objects.create(status="confirmed")
            return complete()

    @on_event("reservation_confirmed", name="greet")
    def greet(event):
        logger.info("hello")

    run = engine.start(Cause)
    work()
    found = kept.one("hello")
    event = event_of(Reservation.objects.get(), "reservation_confirmed")
    assert found["automation_kind"] == "callback"
    assert found["automation_name"] == "greet"
    assert found["automation_entity"] == f"{event.entity_type}:{event.entity_id}"
    assert found["automation_causes"] == [f"event:{event.pk}", f"workflow:{run.pk}:save"]
    assert found["automation_depth"] == 2


def test_a_handler_names_its_agent_and_the_failure_names_the_handler(kept, work):
    @agent("logs:agent", spawn_on="booking_created")
    class Logging:
        Context = Notes

        @handler("booking_created")
        def answer(self):
            logger.info("answering")
            raise GiveUp("no answer")

    book()
    work()
    found = kept.one("answering")
    assert (found["automation_kind"], found["automation_name"], found["automation_part"]) == (
        "handler",
        "logs:agent",
        "answer",
    )
    assert str(found["automation_run"]).startswith("agent:")
    for message in ("failed after", "has failed for good"):
        assert kept.one(message)["automation"] == found["automation"]


def test_a_run_that_failed_for_good_is_named_by_the_engine_s_own_record(kept, work):
    @workflow("logs:fails")
    class Fails:
        class Context(BaseModel):
            pass

        @step(start=True)
        def go(self):
            return fail("no stock")

    run = engine.start(Fails)
    work()
    assert kept.one("has failed for good")["automation"] == f"workflow:{run.pk}:go"
    logger.info("afterwards")
    assert kept.one("afterwards") == {"automation": ""}


def test_the_filter_makes_no_query(work, django_assert_num_queries):
    counted: list[int] = []

    @on_event("reservation_confirmed")
    def greet(event):
        with django_assert_num_queries(0):
            record = logging.LogRecord("a.project", logging.INFO, "", 0, "hello", (), None)
            assert AutomationFilter().filter(record)
            counted.append(len(record.automation))  # type: ignore[attr-defined]

    Reservation.objects.create(status="confirmed")
    work()
    assert counted
    assert counted[0] > 0


def test_an_observer_that_raises_changes_nothing(work, caplog):
    ended: list[str] = []

    class Observes:
        def __init__(self, row: object, current: CurrentRun) -> None:
            self.label = current.label

        def __enter__(self) -> None:
            ended.append(f"enter {self.label}")

        def __exit__(self, *error: object) -> None:
            ended.append(f"exit {self.label}")
            raise RuntimeError("observer")

    def refuses(row: object, current: CurrentRun) -> Observes:
        raise RuntimeError("observer")

    @workflow("logs:observed")
    class Watched:
        class Context(BaseModel):
            pass

        @step(start=True)
        def go(self):
            ended.append("go")
            return complete()

    observing.observe_attempts("observes", Observes)
    observing.observe_attempts("refuses", refuses)
    try:
        run = engine.start(Watched)
        work()
    finally:
        observing.forget_observer("observes")
        observing.forget_observer("refuses")
    run.refresh_from_db()
    assert run.status == "completed"
    assert ended == [f"enter workflow:{run.pk}:go", "go", f"exit workflow:{run.pk}:go"]
    assert "The observer 'refuses' of attempts failed" in caplog.text
