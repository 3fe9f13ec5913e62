"""The card terminal reports what guests pay, by webhooks: events without a model."""

from __future__ import annotations

from django_ai.automation import FreeEvent, idempotency_key, on_event
from django_ai.automation.events.models import Event

from ..models import Message, Reservation

TERMINAL = FreeEvent("terminal:*")


@on_event("terminal:paid")
def note_the_payment(event: Event) -> None:
    reservation = Reservation.objects.get(room=event.payload["room"])
    Message.objects.create(
        reservation=reservation, text=f"Paid by card: {event.payload['amount']}", key=idempotency_key()
    )
