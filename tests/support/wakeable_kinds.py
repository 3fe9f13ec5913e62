"""Functions that create one due row of each kind of Wakeable. Performing it has exactly one effect."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    agent,
    complete,
    engine,
    get_wake,
    handler,
    on_event,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import CallbackExecution, CapturedWrite, Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.wakeable import Wakeable
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.captured.models import Parcel
from tests.apps.front_desk.models import Message, Person
from tests.apps.reservations.models import Document, Reservation
from tests.support.rows import leave


class Guest(BaseModel):
    guest_id: int = 0


def an_event() -> None:
    @on_event("checkin_due", name="kind:event")
    def due(event):
        leave("done")

    Reservation.objects.create(status="confirmed", checkin_at=timezone.now() - timedelta(minutes=1))


def a_captured_write() -> None:
    @on_event("parcel_created", name="kind:captured")
    def created(event):
        leave("done")

    Parcel.objects.bulk_create([Parcel()])


def a_callback() -> None:
    @on_event("document_uploaded", name="kind:callback")
    def filed(event):
        leave("done")

    Document.objects.create(reservation=Reservation.objects.create())


def a_signal() -> None:
    @workflow("kind:waits")
    class Waits:
        Context = Guest

        @step(start=True)
        def listen(self):
            if get_wake().reason == "first":
                return wait("kind:signal")
            leave("done")
            return complete()

    engine.start("kind:waits")
    drain()
    engine.signal("kind:signal")


def a_run() -> None:
    @workflow("kind:run")
    class Runs:
        Context = Guest

        @step(start=True)
        def begin(self):
            leave("done")
            return complete()

    engine.start("kind:run")


def an_agent() -> None:
    @agent("kind:agent", match={"guest_id": "{{ ctx.guest_id }}"})
    class Companion:
        Context = Guest

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def heard(self, event):
            leave("done")

    guest = Person.objects.create()
    AgentManager.spawn("kind:agent", guest_id=guest.pk)
    drain()
    Message.objects.create(sender=guest, text="hello")


KINDS: dict[type[Wakeable], object] = {
    CapturedWrite: a_captured_write,
    Event: an_event,
    CallbackExecution: a_callback,
    Signal: a_signal,
    WorkflowRun: a_run,
    AgentRun: an_agent,
}
