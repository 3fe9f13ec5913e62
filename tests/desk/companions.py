"""Contexts and agents that several of the tests use."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import agent, handler
from tests.lifecycle.looking import leave


class Nothing(BaseModel):
    pass


class Entity(BaseModel):
    entity_id: str


class Notes(BaseModel):
    entity_id: str = ""
    count: int = 0
    notes: list[str] = []


class OfGuest(BaseModel):
    guest_id: int
    seen: list[str] = []


def of_guest(name="of_guest", *, spawn_on="booking_created", singleton=True, **options):
    """Declare an agent for each guest; it notes what it hears."""

    @agent(name, spawn_on=spawn_on, match={"guest_id": "{{ ctx.guest_id }}"}, singleton=singleton, **options)
    class Companion:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("booking_created")
        def created(self, ctx, event):
            leave(f"created {event.entity_id}")
            ctx.seen.append(event.entity_id)

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def heard(self, event):
            leave(f"heard {event.entity.text}")

    return Companion


def answering(function, event_name="booking_created", **options):
    """Declare an agent of each booking with one handler."""

    @agent("answering", spawn_on="booking_created")
    class Answering:
        Context = Notes

        answer = handler(event_name, **options)(function)

    return Answering
