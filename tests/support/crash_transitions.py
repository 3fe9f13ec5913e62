"""A program whose crash points are tested: transitions of an entity, and one that is taken back in its transaction."""

from __future__ import annotations

from django.db import transaction
from pydantic import BaseModel

from django_ai.automation import EventDefinition, complete, event_workflow, on_event, register_events, step
from tests.apps.reservations.models import Reservation
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import STAY, booked, changed
from tests.support.rows import leave


def transitions() -> None:
    register_events(
        Reservation, EventDefinition("stay_began", was={"status": "confirmed"}, becomes={"status": "arrived"})
    )

    @on_event("stay_began", name="began")
    def began(event):
        leave(f"began {event.changes['status']}")

    @event_workflow("stay_began", name="begun")
    class Begun:
        class Context(BaseModel):
            before: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(before=event.changes["status"][0])

        @step(start=True)
        def begin(self):
            leave(f"was {self.context.before}")
            return complete()


def arrives() -> None:
    """Two saves of one transaction are one transition."""
    with transaction.atomic():
        if Reservation.objects.get(pk=STAY).status == "confirmed":
            changed(status="in the lobby")
            changed(status="arrived")


def hesitates() -> None:
    with transaction.atomic():
        changed(status="arrived")
        changed(status="confirmed")


TRANSITIONS = Program(
    "transitions",
    transitions,
    [
        web(booked),
        web(hesitates),
        web(arrives),
        work(),
        web(lambda: changed(status="confirmed"), 0.5),
        web(arrives, 1),
        work(1.5),
        prune_in_batches(2),
    ],
    ["began ('confirmed', 'arrived')"] * 2 + ["was confirmed"] * 2,
)
