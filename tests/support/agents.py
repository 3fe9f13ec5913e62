"""Contexts and agents that several tests use."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import agent, handler
from tests.support.rows import leave


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


class CountingGuest(BaseModel):
    guest_id: int
    count: int = 0
    heard: list[str] = []


def of_guest(name="of_guest", *, spawn_on="booking_created", singleton=True, **options):
    """Declare an agent for each guest. It records the events that it handles."""

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
    """Declare an agent with one handler, spawned for each booking."""

    @agent("answering", spawn_on="booking_created")
    class Answering:
        Context = Notes

        answer = handler(event_name, **options)(function)

    return Answering


def counting_companion():
    """Declare an agent for each guest. It counts the guest's messages."""

    @agent("companion", spawn_on="booking_created", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
    class Companion:
        Context = CountingGuest

        @classmethod
        def create_context(cls, event=None, guest_id=None):
            return cls.Context(guest_id=event.entity.guest_id if event else guest_id)

        @handler("booking_created")
        def created(self, event):
            leave(f"created {event.entity_id}")

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def heard(self, ctx, event):
            ctx.count += 1
            leave(f"heard {event.entity.text}")

        @handler("booking_confirmed")
        def confirmed(self, event):
            leave(f"confirmed {event.entity_id}")

    return Companion
