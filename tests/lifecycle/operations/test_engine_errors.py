"""An error of user code or of the engine is stored on its own row and does not affect other rows."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from pydantic import BaseModel, field_validator

from django_ai.automation import agent, complete, engine, handler, step, workflow
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Probe
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


def quiet() -> WorkflowRun:
    @workflow("quiet")
    class Quiet:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    return engine.start("quiet")


def test_an_error_of_the_engine_is_the_reason_and_not_a_guess(clock, work, monkeypatch):
    run = quiet()

    def broken(self, clock):
        raise ZeroDivisionError("a bug of the engine")

    with monkeypatch.context() as patch:
        patch.setattr(WorkflowRun, "perform", broken)
        for _ in range(4):
            work()
            clock.tick(timedelta(seconds=11))
    run.refresh_from_db()
    assert run.status == "parked"
    assert "ZeroDivisionError: a bug of the engine" in run.error
    assert "Traceback" in run.error
    assert "died" not in run.error
    run.resume()
    work()
    run.refresh_from_db()
    assert (run.status, run.error) == ("completed", "")


def test_an_engine_error_that_passes_leaves_no_trace(clock, work, monkeypatch):
    run = quiet()
    with monkeypatch.context() as patch:
        patch.setattr(WorkflowRun, "perform", lambda self, clock: 1 / 0)
        work()
    run.refresh_from_db()
    assert (run.losses, run.lease) == (1, None)
    clock.tick(timedelta(seconds=11))
    work()
    run.refresh_from_db()
    assert (run.status, run.error) == ("completed", "")


def test_a_validator_of_one_agent_stops_no_other(work):
    """If a Context validator of one agent raises an exception that Pydantic does not handle, other agents still run."""
    broken: set[str] = set()

    @agent("keeper", spawn_on="probe_ready", match={"ready": "{{ ctx.ready }}"})
    class Versioned:
        class Context(BaseModel):
            name: str
            ready: bool = True

            @field_validator("name")
            @classmethod
            def known(cls, name: str) -> str:
                if name in broken:
                    raise LookupError(f"{name} is in no directory")
                return name

        @classmethod
        def create_context(cls, event):
            return cls.Context(name=event.entity.name)

        @handler("probe_due", match={"ready": "{{ ctx.ready }}"})
        def note(self, ctx):
            leave(ctx.name)

    for name in ("bad", "good"):
        Probe.objects.create(name=name, ready=True)
    work()
    broken.add("bad")
    probe = Probe.objects.create(name="third")
    probe.ready = True
    probe.due_at = timezone.now()
    probe.save()
    work()
    assert "good" in effects()
    assert "bad" not in effects()
    bad = AgentRun.objects.get(data__name="bad")
    assert "is in no directory" in bad.error
