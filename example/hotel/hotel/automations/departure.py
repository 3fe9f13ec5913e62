"""When a guest leaves: the bill, and a child workflow that cleans the room."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import (
    Outcome,
    complete,
    event_workflow,
    fail,
    get_wake,
    goto,
    on_fail,
    run_subflow,
    step,
    workflow,
)

from ..models import HousekeepingTask, Message, Reservation
from ..pace import hours


@event_workflow("checkout_due", offset=hours(-1), name="hotel.departure")
class Departure:
    class Context(BaseModel):
        entity_id: int  # filled from the event, so no create_context is needed
        cleaned: bool = False

    @step(start=True)
    def bill(self) -> Outcome:
        if not Reservation.objects.get(pk=self.context.entity_id).paid:
            return fail("The bill is not paid")
        return goto(self.clean)

    @step()
    def clean(self) -> Outcome:
        return run_subflow("hotel.clean", reservation_id=self.context.entity_id, then=self.close)

    @step()
    def close(self) -> Outcome:
        return complete(cleaned=get_wake().payload["status"] == "completed")

    @on_fail
    def call_the_manager(self, error: str) -> None:
        """A step of its own, before the run ends: the manager gets exactly one message for each failed run."""
        reservation = Reservation.objects.get(pk=self.context.entity_id)
        reason = error.strip().splitlines()[-1]
        Message.objects.create(reservation=reservation, text=f"Manager! {reservation} cannot leave: {reason}"[:200])


@workflow("hotel.clean")
class Clean:
    class Context(BaseModel):
        reservation_id: int

    @step(start=True)
    def run(self) -> Outcome:
        HousekeepingTask.objects.create(reservation_id=self.context.reservation_id, what="Clean the room", done=True)
        Message.objects.create(reservation_id=self.context.reservation_id, text="The room is clean")
        return complete()
