"""Before a guest arrives: documents, a room, a key card."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import (
    Outcome,
    Retry,
    complete,
    event_workflow,
    get_context,
    goto,
    idempotency_key,
    on_fail,
    sleep,
    step,
    wait,
    wait_any,
    wait_for_event,
)
from django_ai.automation.events.models import Event

from .. import external_services
from ..desk import DOCUMENTS_WAIVED
from ..models import Document, HousekeepingTask, Message, Reservation
from ..pace import hours


@event_workflow("checkin_due", offset=hours(-3), name="hotel.arrival")
class PrepareArrival:
    """Starts three hours before check-in. The run is planned when the reservation is confirmed, moves with the date,
    and is withdrawn if the reservation is cancelled."""

    class Context(BaseModel):
        reservation_id: int
        documents: str = ""
        tries: int = 0
        key_card: str = ""

    @classmethod
    def create_context(cls, event: Event) -> Context:
        return cls.Context(reservation_id=event.entity.pk)

    @step(start=True)
    def ask_for_documents(self) -> Outcome:
        """Waits for the first of three. Entered again by two of them; the payload of the event or signal has then set
        ``documents`` in the Context."""
        ctx = get_context()
        if not ctx.documents:
            # A wait receives events that occur after the run has started. Earlier documents are in the table.
            early = Document.objects.filter(reservation_id=ctx.reservation_id).first()
            ctx.documents = early.kind if early else ""
        if ctx.documents:
            return goto(self.make_up_the_room)
        return wait_any(
            uploaded=wait_for_event("document_uploaded", match={"reservation_id": "{{ ctx.reservation_id }}"}),
            waived=wait(DOCUMENTS_WAIVED),
            too_late=sleep(hours(1), then=self.register_at_the_desk),
        )

    @step()
    def register_at_the_desk(self) -> Outcome:
        ctx = get_context()
        ctx.documents = "at the desk"
        return goto(self.make_up_the_room)

    @step(retry=Retry(max_attempts=4, base_delay=timedelta(seconds=2)))
    def make_up_the_room(self) -> Outcome:
        ctx = get_context()
        ctx.tries += 1  # kept if the attempt fails; the row below is rolled back
        HousekeepingTask.objects.create(reservation_id=ctx.reservation_id, what="Make up the room")
        external_services.phone_housekeeping(tries=ctx.tries)
        return goto(self.cut_the_key)

    @step(atomic=False, timeout=timedelta(seconds=30), retry=Retry(max_attempts=4, base_delay=timedelta(seconds=1)))
    def cut_the_key(self) -> Outcome:
        """Calls an external service without an open transaction, with the same key at each attempt."""
        room = Reservation.objects.get(pk=self.context.reservation_id).room
        self.context.key_card = external_services.cut_key_card(room, idempotency_key())
        return goto(self.report)

    @step()
    def report(self) -> Outcome:
        room = Reservation.objects.get(pk=self.context.reservation_id).room
        Message.objects.create(
            reservation_id=self.context.reservation_id,
            text=f"Room {room} is ready (documents: {self.context.documents})",
        )
        return complete()

    @on_fail
    def call_the_manager(self, error: str) -> None:
        Message.objects.create(text=f"Room not ready: {error.strip().splitlines()[-1]}"[:200])
