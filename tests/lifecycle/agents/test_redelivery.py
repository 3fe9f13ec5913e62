"""``AgentManager.redeliver``: an event that was skipped, or in which a handler has failed, is handled again."""

from __future__ import annotations

import pytest

from django_ai.automation import AgentManager, Retry, agent, claims, handler
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.exceptions import DefinitionError, StateError
from tests.support.agents import Nothing
from tests.support.front_desk import answers, book, the_answer
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

broken: list[str] = []


@pytest.fixture(autouse=True)
def all_is_broken():
    broken[:] = ["created", "greeted"]


def desk():
    """Declare an agent with a handler that fails, and one whose condition is false, while they are ``broken``."""

    @agent("desk", spawn_on="booking_created", default_retry=Retry(max_attempts=1))
    class Desk:
        Context = Nothing

        @classmethod
        def create_context(cls):
            return Nothing()

        @handler("booking_created")
        def created(self):
            if "created" in broken:
                raise ValueError("down")
            leave("created")

        @handler("booking_created", condition=lambda context: "greeted" not in broken)
        def greeted(self):
            leave("greeted")


def test_what_failed_and_what_was_skipped_is_handled_again(work):
    desk()
    booking = book()
    work()
    assert sorted(answers()) == [("created", "failed"), ("greeted", "skipped")]
    event = event_of(booking, "booking_created")
    key = the_answer(handler="created").idempotency_key
    broken.clear()
    again = AgentManager.redeliver(event)
    assert [(each.handler, each.status, each.attempt, each.error) for each in again] == [
        ("created", "pending", 0, ""),
        ("greeted", "pending", 0, ""),
    ]
    work()
    assert effects() == ["created", "greeted"]
    assert sorted(answers()) == [("created", "completed"), ("greeted", "completed")]
    assert the_answer(handler="created").idempotency_key == key


def test_one_execution_or_one_handler_of_one_agent(work):
    desk()
    bookings = [book(), book()]
    work()
    broken.clear()
    execution = HandlerExecution.objects.filter(handler="greeted").first()
    assert execution is not None
    assert AgentManager.redeliver(execution) == [execution]
    assert execution.status == "pending"
    work()
    assert effects() == ["greeted"]
    event = event_of(bookings[1], "booking_created")
    run = AgentRun.objects.get(executions__event=event, executions__handler="created")
    assert len(AgentManager.redeliver(event, run, handler="created")) == 1
    work()
    assert effects() == ["greeted", "created"]
    with pytest.raises(DefinitionError, match="leave run= and handler= out"):
        AgentManager.redeliver(execution, run)
    with pytest.raises(DefinitionError, match="give a HandlerExecution or an Event"):
        AgentManager.redeliver(run)  # type: ignore[arg-type]


def test_it_is_skipped_again_while_its_condition_is_false_or_the_event_is_claimed(work):
    desk()
    booking = book()
    work()
    broken.remove("created")
    claimer = AgentManager.spawn("desk")
    claims.hold("booking_created", owner=claimer)
    AgentManager.redeliver(event_of(booking, "booking_created"))
    work()
    assert sorted(answers(run__event__isnull=False)) == [("created", "skipped"), ("greeted", "skipped")]
    assert "claimed by" in the_answer(handler="created").error
    claims.release("booking_created", owner=claimer)
    AgentManager.redeliver(event_of(booking, "booking_created"))
    work()
    assert effects() == ["created"]


def test_what_makes_no_sense_is_refused_with_the_states(work):
    desk()
    broken.clear()
    booking = book()
    event = event_of(booking, "booking_created")
    work()
    with pytest.raises(StateError, match=r"none was skipped or has failed \(2 completed\)\. What has completed"):
        AgentManager.redeliver(event)
    with pytest.raises(StateError, match=r"no agent has received it"):
        AgentManager.redeliver(event, run=999999)
    HandlerExecution.objects.filter(handler="created").update(status="parked")
    with pytest.raises(StateError, match=r"\(1 completed, 1 parked\)\. Resume the parked"):
        AgentManager.redeliver(event)
    HandlerExecution.objects.filter(handler="created").update(status="failed")
    run = AgentRun.objects.get()
    AgentManager.complete(run)
    with pytest.raises(StateError, match=rf"its agent desk #{run.pk} has ended \(completed\)"):
        AgentManager.redeliver(event)
    assert effects() == ["created", "greeted"]
