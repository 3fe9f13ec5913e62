"""Support: one agent for each guest who complains. It claims the guest's messages until all complaints are solved, so
that the journey does not answer them automatically."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import AgentManager, agent, claims, handler, idempotency_key
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event

from ..models import Message
from ..pace import hours


@agent("hotel.support", spawn_on="complaint_opened", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
class Support:
    class Context(BaseModel):
        guest_id: int
        unsolved: list[int] = []
        to_ask: list[int] = []

    @classmethod
    def create_context(cls, event: Event) -> Context:
        return cls.Context(guest_id=event.entity.guest_id)

    @handler("complaint_opened")
    def take_over(self, ctx: Context, event: Event) -> None:
        """Also handles further complaints: the agent is a singleton for the guest. Holding a claim again renews it."""
        claims.hold("guest_wrote", match={"guest_id": ctx.guest_id}, expires_in=None)
        say(f"{event.entity.guest}, Petra comes at once: {event.entity.what}")
        ctx.unsolved.append(event.entity.pk)  # last, because the Context keeps changes of a failed attempt

    @handler("guest_wrote", condition=lambda ctx: ctx.unsolved)
    def answer_in_person(self, event: Event) -> None:
        say(f'Petra calls {event.entity.guest} about "{event.entity.text}"')

    @handler("complaint_solved")
    def hand_back(self, ctx: Context, event: Event) -> None:
        left = [each for each in ctx.unsolved if each != event.entity.pk]
        if not left:
            claims.release("guest_wrote", match={"guest_id": ctx.guest_id})
        ctx.unsolved = left
        ctx.to_ask.append(event.entity.pk)

    @handler("complaint_solved", offset=hours(1))
    def ask_again(self, ctx: Context, event: Event, run: AgentRun) -> None:
        """An hour later. The agent completes when no complaint is unsolved and no question is left to ask."""
        say(f"{event.entity.guest}, is all well now? ({event.entity.what})")
        ctx.to_ask.remove(event.entity.pk)
        if not ctx.unsolved and not ctx.to_ask:
            AgentManager.complete(run)


def say(text: str) -> None:
    Message.objects.create(text=text, key=idempotency_key())
