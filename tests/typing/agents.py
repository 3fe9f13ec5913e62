"""Types of agents: decorators, the Context, the manager."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from pydantic import BaseModel

from django_ai.automation import Agent, AgentManager, agent, handler
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event


class ComplaintsContext(BaseModel):
    customer_id: int
    number: int = 0


@agent("complaints", spawn_on="complaint_opened", match={"customer_id": "{{ ctx.customer_id }}"}, singleton=True)
class Complaints(Agent[ComplaintsContext]):
    Context = ComplaintsContext

    @classmethod
    def create_context(cls, event: Event) -> ComplaintsContext:
        return cls.Context(customer_id=event.pk)

    @handler("complaint_opened")
    @handler("complaint_opened", offset=timedelta(days=1), recheck=True)
    def count(self, ctx: ComplaintsContext, event: Event) -> int:
        assert_type(self.context, ComplaintsContext)
        return self.context.number + ctx.number

    @handler("complaint_closed")
    def close(self, run: AgentRun) -> None:
        print(self.context.colour)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


@agent("plain")
class Plain:
    class Context(BaseModel):
        number: int = 0

    @handler("complaint_opened")
    def count(self, ctx: Context) -> str:
        return str(ctx.number)


def decorated_classes_and_methods_keep_their_types(
    complaints: Complaints, ctx: ComplaintsContext, event: Event
) -> None:
    assert_type(Complaints(), Complaints)
    assert_type(complaints.count(ctx, event), int)
    assert_type(Plain().count(Plain.Context()), str)
    complaints.count(ctx)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    complaints.count(event, ctx)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def arguments_are_checked() -> None:
    handler("complaint_opened", timeout=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Agent[int]  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]


def the_manager_has_types(run: AgentRun, event: Event) -> None:
    assert_type(AgentManager.spawn(Complaints, event), AgentRun)
    assert_type(AgentManager.spawn("complaints", customer_id=1), AgentRun)
    assert_type(AgentManager.complete(run), bool)
    assert_type(AgentManager.cancel(run, "Left."), bool)
    assert_type(AgentManager.resume(run), AgentRun)
    assert_type(run.context_as(ComplaintsContext), ComplaintsContext)
