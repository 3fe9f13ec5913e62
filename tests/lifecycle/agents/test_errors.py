"""An exception in the project's code affects only its own agent or execution, and that row shows the error."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.utils import timezone
from pydantic import BaseModel, field_validator

from django_ai.automation import AgentManager, agent, handler
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from tests.apps.front_desk.models import Person
from tests.support.front_desk import book, the_answer, write
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

broken: set[str] = set()


@pytest.fixture(autouse=True)
def mended():
    broken.clear()


class Named(BaseModel):
    name: str = ""
    urgency: int = 0

    @field_validator("name")
    @classmethod
    def known(cls, value: str) -> str:
        if value in broken:
            raise RuntimeError(f"{value} cannot be looked up")
        return value


@pytest.fixture
def subscribers():
    """Declare agents that subscribe to messages by minimum urgency, a comparison that no route key can express."""

    @agent("listeners", match={"urgency__gte": "{{ ctx.urgency }}"})
    class Listeners:
        Context = Named

        @handler("message_received")
        def heard(self, ctx, event):
            leave(f"{ctx.name} heard {event.entity.text}")
            if event.entity.text == "fail":
                raise ZeroDivisionError
            if event.entity.text == "misset":
                ctx.name = "set by the handler"
                ctx.urgency = "high"


def spawned(*names: str) -> list[AgentRun]:
    return [AgentManager.spawn("listeners", name=name) for name in names]


def test_a_validator_that_raises_anything_stops_its_own_agent_only(subscribers, clock, work):
    bad, _ = spawned("bad", "good")
    work()
    broken.add("bad")
    write(Person.objects.create(), "hello")
    work()
    assert effects() == ["good heard hello"]
    bad.refresh_from_db()
    assert (bad.status, bad.losses) == ("parked", 0)
    assert "RuntimeError: bad cannot be looked up" in bad.error
    assert "Traceback" in bad.error
    broken.clear()
    bad.resume()
    work()
    assert effects() == ["good heard hello", "bad heard hello"]


def test_a_value_that_cannot_be_read_stops_its_own_agent_only(work):
    class Odd(BaseModel):
        name: str
        urgency: int = 0

        def __getattribute__(self, name: str):
            if name == "urgency" and self.name in broken:
                raise KeyError(self.name)
            return super().__getattribute__(name)

    @agent("odd", match={"urgency__gte": "{{ ctx.urgency }}"})
    class OddOnes:
        Context = Odd

        @handler("message_received")
        def heard(self, ctx):
            leave(f"{ctx.name} heard it")

    bad, _ = (AgentManager.spawn("odd", name=name) for name in ("bad", "good"))
    work()
    broken.add("bad")
    write(Person.objects.create(), "hello")
    work()
    assert effects() == ["good heard it"]
    bad.refresh_from_db()
    assert (bad.status, bad.losses) == ("parked", 0)
    assert "KeyError: 'bad'" in bad.error


def test_what_a_handler_sets_and_a_validator_raises_over_fails_that_execution(subscribers, clock, work):
    (run,) = spawned("alone")
    work()
    broken.add("set by the handler")
    write(Person.objects.create(), "misset")
    work()
    for _ in range(3):
        clock.tick(timedelta(minutes=5))
        work()
    execution = the_answer()
    assert execution.status == "failed"
    assert "The changes of the handler to its Context are lost: RuntimeError" in execution.error
    run.refresh_from_db()
    assert (run.status, run.losses, run.data["name"]) == ("active", 0, "alone")


def test_an_error_of_the_engine_keeps_its_traceback(subscribers, monkeypatch, work):
    (run,) = spawned("alone")
    work()
    monkeypatch.setattr("django_ai.automation.agents.agent_session.pending_in", lambda *args: 1 / 0)
    book()
    write(Person.objects.create(), "hello")
    work()
    run.refresh_from_db()
    assert (run.status, run.losses) == ("parked", 0)
    assert "ZeroDivisionError" in run.error
    assert "Traceback" in run.error


@pytest.mark.parametrize("end", [AgentManager.complete, AgentManager.cancel])
def test_an_execution_that_is_parked_ends_with_its_agent(subscribers, work, end):
    (run,) = spawned("alone")
    work()
    HandlerExecution.objects.create(
        run=run, event=event_of(book(), "booking_created"), handler="gone", due_at=run.created_at, unique_key="gone"
    )
    run.refresh_from_db()
    AgentRun.objects.update(wake_at=run.created_at)
    work()
    execution = the_answer()
    assert execution.status == "parked"
    end(run)
    execution.refresh_from_db()
    assert execution.status == "cancelled"
    assert execution.error.startswith("The agent has ended; this was parked: UnknownHandlerError")
    assert not HandlerExecution.unfinished().exists()


@pytest.mark.slow
def test_an_agent_shows_how_many_of_its_executions_have_failed(subscribers, clock, work, admin_client):
    (run,) = spawned("alone")
    work()
    assert run_line(run) == "its events"
    for failed in (" (1 handler execution has failed)", " (2 handler executions have failed)"):
        write(Person.objects.create(), "fail")
        for _ in range(4):
            work()
            clock.tick(timedelta(minutes=5))
        assert run_line(run) == f"its events{failed}"
        assert failed in admin_client.get("/admin/automation_agents/agentrun/").content.decode()
        printed = StringIO()
        call_command("automation_health", "--explain", stdout=printed)
        assert failed in printed.getvalue()
    for execution in HandlerExecution.objects.all():
        execution.resume()
    work()
    run.refresh_from_db()
    assert "failed" not in run_line(run)


def run_line(run: AgentRun) -> str:
    """Return what the agent waits for. The single row and the row from ``unfinished()`` must agree."""
    run.refresh_from_db()
    (found,) = AgentRun.unfinished()
    assert found.waits_for(timezone.now()) == run.waits_for(timezone.now())
    return run.waits_for(timezone.now())
