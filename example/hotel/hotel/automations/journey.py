"""The concierge: one agent for each stay, from the confirmation until an hour after check-out.

It is matched by the reservation for events of the stay, and by the guest for the guest's messages.
"""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import AgentManager, Retry, agent, handler, idempotency_key
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event

from .. import external_services
from ..models import Message
from ..pace import hours

FROM_THE_GUEST = {"guest_id": "{{ ctx.guest_id }}"}


@agent("hotel.journey", spawn_on="reservation_confirmed", match={"pk": "{{ ctx.reservation_id }}"}, singleton=True)
class Journey:
    class Context(BaseModel):
        reservation_id: int
        guest_id: int
        in_house: bool = False
        letters: int = 0
        calls: int = 0

    @classmethod
    def create_context(cls, event: Event) -> Context:
        stay = event.entity
        return cls.Context(reservation_id=stay.pk, guest_id=stay.guest_id, in_house=stay.checkin_at <= timezone.now())

    @handler("reservation_confirmed")
    def introduce(self, ctx: Context, event: Event) -> None:
        say(ctx, f"{event.entity.guest}, I am your concierge")

    @handler("checkin_due", offset=hours(-3))
    def look_forward(self, ctx: Context, event: Event) -> None:
        """Three hours before check-in, also after the date was moved."""
        say(ctx, f"{event.entity.guest}, see you in three hours")

    @handler("checkin_due")
    def show_the_way(self, ctx: Context, event: Event) -> None:
        ctx.in_house = True
        say(ctx, f"{event.entity.guest}, room {event.entity.room} is up the stairs")

    @handler("checkin_due", condition=lambda event: event.entity.guest.vip)
    def bring_champagne(self, ctx: Context, event: Event) -> None:
        """The condition is evaluated at check-in, so a guest who became a VIP after booking gets a glass, too."""
        say(ctx, f"Champagne for room {event.entity.room}")

    @handler("checkout_due", offset=hours(-1), retry=Retry(max_attempts=4, base_delay=timedelta(seconds=2)))
    def call_a_taxi(self, ctx: Context, event: Event) -> None:
        """While this waits for its next attempt, the agent handles other events."""
        ctx.calls += 1  # kept if the call fails; the row below is rolled back
        say(ctx, f"{event.entity.guest}, a taxi is on its way")
        external_services.call_a_taxi(tries=ctx.calls)

    @handler("checkout_due", offset=hours(1))
    def say_goodbye(self, ctx: Context, event: Event, run: AgentRun) -> None:
        say(ctx, f"{event.entity.guest}, have a safe trip home")
        AgentManager.complete(run)

    @handler("reservation_cancelled")
    @handler("reservation_deleted")
    def give_up(self, run: AgentRun) -> None:
        AgentManager.cancel(run, "The stay was cancelled.")

    @handler("guest_wrote", match=FROM_THE_GUEST, condition=lambda ctx: ctx.in_house)
    def answer(self, ctx: Context, event: Event) -> None:
        """Only after check-in, and not while the guest's messages are claimed. The agent of a second stay of the same
        guest does not answer until that stay begins."""
        say(ctx, f'{event.entity.guest}, on "{event.entity.text}": of course')

    @handler("guest_wrote", match=FROM_THE_GUEST, ignores_claims=True)
    def count_the_letters(self, ctx: Context) -> None:
        """Counts all messages of the guest, whichever agent answers them."""
        ctx.letters += 1


def say(ctx: Journey.Context, text: str) -> None:
    Message.objects.create(reservation_id=ctx.reservation_id, text=text, key=idempotency_key())
