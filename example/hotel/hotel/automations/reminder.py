"""A reminder before check-in as a workflow. Its run is planned at the booking, and its row is the timer."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import Outcome, complete, event_workflow, idempotency_key, step
from django_ai.automation.events.models import Event

from ..models import Message, Reservation
from ..pace import hours


@event_workflow("checkin_due", offset=hours(-2), name="hotel.reminder")
class Reminder:
    class Context(BaseModel):
        reservation_id: int
        sent: bool = False

    @classmethod
    def create_context(cls, event: Event) -> Context:
        return cls.Context(reservation_id=event.entity.pk)

    @step(start=True)
    def remind(self) -> Outcome:
        reservation = Reservation.objects.get(pk=self.context.reservation_id)
        Message.objects.create(
            reservation=reservation, text=f"{reservation.guest}, we expect you in two hours", key=idempotency_key()
        )
        return complete(sent=True)
