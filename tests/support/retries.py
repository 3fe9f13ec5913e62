"""Steps, callbacks and handlers that call a function of a test, and a service that answers with errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from django_ai.automation import Retry, agent, complete, engine, handler, idempotency_key, on_event, step, workflow
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues.causation import current_cause
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.front_desk import book
from tests.support.rows import leave


class Nothing(BaseModel):
    pass


@dataclass
class Tried:
    """A row whose code is tried. ``due``: the name of the column with its next attempt."""

    model: Any
    due: str

    @property
    def row(self) -> Any:
        return self.model.objects.get()

    @property
    def due_at(self) -> Any:
        return getattr(self.row, self.due)


def a_step(function: Callable[[], object], retry: Retry) -> Tried:
    @workflow("tried")
    class Flow:
        Context = Nothing

        @step(start=True, retry=retry)
        def begin(self):
            function()
            return complete()

    engine.start("tried")
    return Tried(WorkflowRun, "wake_at")


def a_callback(function: Callable[[], object], retry: Retry) -> Tried:
    on_event("booking_created", name="tried", retry=retry)(lambda event: function())
    book()
    return Tried(CallbackExecution, "wake_at")


def a_handler(function: Callable[[], object], retry: Retry) -> Tried:
    @agent("tried", spawn_on="booking_created")
    class Agent:
        Context = Nothing

        @handler("booking_created", retry=retry)
        def created(self):
            function()

    book()
    return Tried(HandlerExecution, "due_at")


STARTS = {"step": a_step, "callback": a_callback, "handler": a_handler}


class Service:
    """Answers a number of requests with an error, and then well. It notes the times and keys of the requests."""

    def __init__(self, clock, *errors: Exception) -> None:
        self.clock, self.errors = clock, list(errors)
        self.times: list[Any] = []
        self.keys: list[str] = []
        self.depths: list[int] = []

    def __call__(self) -> None:
        leave("asked")
        self.times.append(self.clock.now)
        self.keys.append(idempotency_key())
        cause = current_cause()
        self.depths.append(cause.chain_length if cause else 0)
        if self.errors:
            raise self.errors.pop(0)
