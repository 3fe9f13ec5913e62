"""When a guest leaves: the bill, and a child workflow that cleans the room."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import complete, event_workflow, fail, get_wake, goto, run_subflow, step, workflow

from ..models import HousekeepingTask, Message, Reservation
from ..pace import hours


@event_workflow("checkout_due", offset=hours(-1), name="hotel.departure")
class Departure:
    class Context(BaseModel):
        entity_id: int  # filled in from the event: no create_context is needed for that
        cleaned: bool = False

    @step(start=True)
    def bill(self):
        if not Reservation.objects.get(pk=self.context.entity_id).paid:
            return fail("The bill is not paid")
        return goto(self.clean)

    @step()
    def clean(self):
        return run_subflow("hotel.clean", reservation_id=self.context.entity_id, then=self.close)

    @step()
    def close(self):
        return complete(cleaned=get_wake().payload["status"] == "completed")


@workflow("hotel.clean")
class Clean:
    class Context(BaseModel):
        reservation_id: int

    @step(start=True)
    def run(self):
        HousekeepingTask.objects.create(reservation_id=self.context.reservation_id, what="Clean the room", done=True)
        Message.objects.create(reservation_id=self.context.reservation_id, text="The room is clean")
        return complete()
