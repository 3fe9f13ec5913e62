"""Workflows that wait, and helpers that start and wake their runs."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation.workflows.core import complete, get_wake, step, wait, wait_for_event, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import leave
from tests.support.workflows import run


def told() -> None:
    """Record why the step was entered, and with which payload."""
    wake = get_wake()
    payload = {
        name: value for name, value in sorted(wake.payload.items()) if not name.startswith(("event_", "entity_"))
    }
    leave(f"{wake.reason} {payload}" if payload else wake.reason)


def waiter(name="waiter", outcome=lambda self: wait("bell"), again=False, **fields):
    """Declare a workflow that waits once (or always, with ``again``) and then completes."""

    @workflow(name)
    class Waiter:
        class Context(BaseModel):
            n: int = 0
            text: str = ""
            pk: str = ""
            reservation_id: int = 0
            docs_ready: bool = False
            kind: str = ""

        @step(start=True)
        def first(self):
            if get_wake().reason != "first":
                told()
                if not again:
                    return complete()
            return outcome(self)

        @step()
        def other(self):
            leave("other")
            told()
            return complete()

    return Waiter


def confirm(**values) -> Reservation:
    return Reservation.objects.create(status="confirmed", **values)


def upload(stay: Reservation) -> None:
    stay.docs = True
    stay.save()


def match_flow(match, name="matching", event="document_uploaded", then=None):
    waiter(name, lambda self: wait_for_event(event, match=match, then=then))


def begin(work, name="waiter", **arguments) -> WorkflowRun:
    return run(work, name, **arguments)
