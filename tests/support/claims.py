"""Workflows that hold claims, and workflows that claimed events start."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation.workflows.core import complete, engine, event_workflow, step, wait, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.rows import leave

UPLOADED = "document_uploaded"


def listen(event: str, name: str, **options) -> None:
    """Declare a workflow that the event starts. It records the id of its entity as an effect."""

    @event_workflow(event, name=name, **options)
    class Listener:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def first(self):
            leave(self.context.entity_id)
            return complete()


def begin(name="holder") -> WorkflowRun:
    return engine.start(name)


def upload(kind="passport", stay=None) -> Document:
    return Document.objects.create(reservation=stay or Reservation.objects.create(), kind=kind)


def started(work, name="listener") -> list[str]:
    """Call ``work``, and return the statuses of the listeners' runs, the oldest first."""
    work()
    return list(WorkflowRun.objects.filter(name=name).order_by("pk").values_list("status", flat=True))


def does(function, name="doer", **options) -> WorkflowRun:
    """Start a run whose start step calls ``function``, and completes if that returns None."""

    @workflow(name)
    class Doer:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, **options)
        def first(self):
            self.context.tries += 1
            return function(self) or complete()

        @step()
        def rest(self):
            return wait("end")

        @step()
        def fall(self):
            raise ZeroDivisionError

    return engine.start(name)
