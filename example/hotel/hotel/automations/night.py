"""The night audit: started by hand, waits for the desk to close the day, and lets the printer cool down."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import complete, get_wake, goto, sleep, step, wait, workflow

from ..models import Message
from ..pace import hours


@workflow("hotel.night_audit")
class NightAudit:
    class Context(BaseModel):
        day: str
        takings: int = 0

    @classmethod
    def create_context(cls, day):
        return cls.Context(day=day)

    @step(start=True)
    def wait_for_the_desk(self):
        return wait(
            "desk:day_closed", then=self.add_up
        )  # elsewhere: engine.signal("desk:day_closed", {"takings": 420})

    @step()
    def add_up(self):
        if get_wake().reason != "timer":
            return sleep(hours(0.5))
        return goto(self.print_it)

    @step()
    def print_it(self):
        Message.objects.create(text=f"Takings of {self.context.day}: {self.context.takings}")
        return complete()
