"""The night audit: started by a schedule, waits for the signal that the day is closed, sleeps, and prints."""

from __future__ import annotations

from datetime import datetime

from django.utils.timezone import localtime
from pydantic import BaseModel

from django_ai.automation import Outcome, complete, get_run, get_wake, goto, schedule, sleep, step, wait, workflow
from django_ai.automation.events.models import Event

from .. import external_services
from ..desk import DAY_CLOSED
from ..models import Message
from ..pace import hours, nightly


@schedule(nightly(), overlap="skip")
@workflow("hotel.night_audit")
class NightAudit:
    class Context(BaseModel):
        day: str
        takings: int = 0

    @classmethod
    def create_context(cls, event: Event) -> Context:
        """The event is that of the schedule. However late a worker is, the day is the one of the scheduled time."""
        scheduled_at = localtime(datetime.fromisoformat(event.payload["scheduled_at"]))
        return cls.Context(day=f"{scheduled_at:%A}")

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
