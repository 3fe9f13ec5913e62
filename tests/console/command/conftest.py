"""A workflow that charges a card, and an agent, for the verbs of the command."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel, Field

from django_ai.automation import Retry, agent, complete, engine, goto, handler, step, wait, workflow
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun


@pytest.fixture
def charging():
    @workflow("charging")
    class Charging:
        class Context(BaseModel):
            guest: str = "Ada"
            cents: int = Field(default=100, ge=1)

        @step(start=True)
        def price(self):
            return goto(self.charge)

        @step(retry=Retry(max_attempts=1))
        def charge(self):
            if self.context.guest == "Bob":
                raise ValueError("the card was \x1b[31mrefused")
            return wait("desk:answer", timeout=timedelta(hours=4), then=self.book, on_timeout=self.give_up)

        @step
        def book(self):
            return complete()

        @step
        def give_up(self):
            return complete()

    return Charging


@pytest.fixture
def caring():
    @agent("caring")
    class Caring:
        class Context(BaseModel):
            guest: str = "Ada"

        @handler("reservation_confirmed")
        def greet(self, run):
            pass

    return Caring


@pytest.fixture
def waiting(charging) -> WorkflowRun:
    """A run that waits for the answer of the desk."""
    run = engine.start("charging")
    drain()
    run.refresh_from_db()
    assert run.status == "suspended"
    return run


@pytest.fixture
def failed(charging) -> WorkflowRun:
    """A run whose card was refused, with a control character in its error."""
    run = engine.start("charging", guest="Bob")
    drain()
    run.refresh_from_db()
    assert run.status == "failed"
    return run
