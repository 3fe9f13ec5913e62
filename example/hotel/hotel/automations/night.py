"""The night audit: started by a call, waits for the signal that the day is closed, sleeps, and prints."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import Outcome, complete, get_run, get_wake, goto, sleep, step, wait, workflow

from .. import external_services
from ..desk import DAY_CLOSED
from ..models import Message
from ..pace import hours


@workflow("hotel.night_audit")
class NightAudit:
    class Context(BaseModel):
        day: str
        takings: int = 0

    @classmethod
    def create_context(cls, day: str) -> Context:
        return cls.Context(day=day)

    @step(start=True)
    def wait_for_the_desk(self) -> Outcome:
        return wait(DAY_CLOSED, then=self.add_up)

    @step()
    def add_up(self) -> Outcome:
        """Entered by the signal, and again by the timer of its sleep."""
        if get_wake().reason != "timer":
            return sleep(hours(0.5))
        return goto(self.print_it)

    @step()
    def print_it(self) -> Outcome:
        """If the worker dies here, the message is rolled back and another worker starts this step again."""
        Message.objects.create(text=f"Takings of {self.context.day}: {self.context.takings}")
        external_services.print_page(losses=get_run().losses)
        return complete()
