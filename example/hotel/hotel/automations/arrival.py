"""Before a guest arrives: papers, a room, a key card."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    complete,
    event_workflow,
    get_context,
    get_wake,
    goto,
    idempotency_key,
    on_fail,
    step,
    wait_for_event,
)

from ..models import HousekeepingTask, Message, Reservation
from ..pace import hours


@event_workflow("checkin_due", offset=hours(-3), name="hotel.arrival")
class PrepareArrival:
    """Begins three hours before check-in: the run is there beforehand, moves with the date, and goes when the
    reservation is cancelled."""

    class Context(BaseModel):
        reservation_id: int
        documents: str = ""
        tries: int = 0
        key_card: str = ""

    @classmethod
    def create_context(cls, event):
        return cls.Context(reservation_id=event.entity.pk)

    @step(start=True)
    def ask_for_documents(self):
        if get_wake().reason == "event":
            return goto(self.make_up_the_room)  # the payload brought ``documents`` into the Context
        return wait_for_event(
            "document_uploaded",
            match={"reservation_id": "{{ ctx.reservation_id }}"},
            timeout=hours(1),
            on_timeout=self.register_at_the_desk,
        )

    @step()
    def register_at_the_desk(self):
        ctx = get_context()
        ctx.documents = "at the desk"
        return goto(self.make_up_the_room)

    @step(retry=Retry(max_attempts=4, base_delay=timedelta(seconds=2)))
    def make_up_the_room(self):
        ctx = get_context()
        ctx.tries += 1  # kept, though the first try fails
        HousekeepingTask.objects.create(
            reservation_id=ctx.reservation_id, what="Make up the room"
        )  # rolled back with it
        if ctx.tries == 1:
            raise ConnectionError("housekeeping does not pick up the phone")
        return goto(self.cut_the_key)

    @step(atomic=False, timeout=timedelta(seconds=30))
    def cut_the_key(self):
        """A call to the outside: no transaction is open while it takes its time, and the key makes a second call
        harmless."""
        self.context.key_card = f"card {idempotency_key()}"
        return goto(self.report)

    @step()
    def report(self):
        room = Reservation.objects.get(pk=self.context.reservation_id).room
        Message.objects.create(
            reservation_id=self.context.reservation_id, text=f"Room {room} is ready (papers: {self.context.documents})"
        )
        return complete()

    @on_fail
    def call_the_manager(self, error: str) -> None:
        Message.objects.create(text=f"Room not ready: {error.strip().splitlines()[-1]}"[:200])
