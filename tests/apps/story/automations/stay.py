"""The automations of a stay. ``STORY_HOUR`` sets the length of an hour, in seconds, for this process.

There is one timer of each kind: a step retry, a callback retry, a sleep, a planned run, a timeout and an offset.
"""

from __future__ import annotations

import os
from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    complete,
    event_workflow,
    fail,
    goto,
    on_event,
    on_event_cancelled,
    on_event_created,
    sleep,
    step,
    wait_for_event,
)
from django_ai.automation.events.callbacks import all_callbacks, unregister

from ..models import Mark


def declare(hour: timedelta) -> None:
    """Declare all automations again, with ``hour`` as the length of an hour."""
    for callback in all_callbacks():
        if callback.name.startswith("stay:"):
            unregister(callback)  # the offset is part of a callback's key: the old callback would stay
    once_more = Retry(max_attempts=2, base_delay=hour, max_delay=10 * hour)

    @on_event_created("arrival_due", name="stay:expected")
    def expected(event):
        Mark.objects.create(name=f"expected {event.entity.name}")

    @on_event("stay_confirmed", name="stay:thanks")
    def thanks(event):
        Mark.objects.create(name=f"thanks {event.entity.name}")

    @on_event_cancelled("arrival_due", name="stay:regret")
    def regret(event):
        Mark.objects.create(name=f"regret {event.entity.name}")

    @on_event("arrival_due", name="stay:room", retry=once_more)
    def room(event):
        Mark.objects.create(name=f"room {event.entity.name}")
        if event.executions.get(callback="stay:room").attempt == 0:
            raise RuntimeError("the room is not ready")

    @on_event("arrival_due", offset=hour, name="stay:settled")
    def settled(event):
        Mark.objects.create(name=f"settled {event.entity.name}")

    class Guest(BaseModel):
        stay: str
        tries: int = 0
        kind: str = ""
        done: list[str] = []

    @event_workflow("stay_confirmed", name="stay:welcome", default_retry=once_more)
    class Welcome:
        Context = Guest

        @classmethod
        def create_context(cls, event):
            return Guest(stay=event.entity.name)

        @step(start=True)
        def greet(self):
            self.context.tries += 1
            Mark.objects.create(name=f"greet {self.context.stay}")
            if self.context.tries == 1:
                raise RuntimeError("no answer")
            self.context.done.append("greet")
            return sleep(2 * hour, then=self.offer)

        @step()
        def offer(self):
            self.context.done.append("offer")
            return complete()

    @event_workflow("arrival_due", offset=-3 * hour, name="stay:reminder")
    class Reminder:
        Context = Guest

        @classmethod
        def create_context(cls, event):
            return Guest(stay=event.entity.name)

        @step(start=True)
        def remind(self):
            self.context.done.append("remind")
            return goto(self.ask)

        @step()
        def ask(self):
            return wait_for_event(
                "paper_uploaded",
                match={"stay__name": "{{ ctx.stay }}"},
                timeout=4 * hour,
                on_timeout=self.give_up,
                then=self.register,
            )

        @step()
        def register(self):
            Mark.objects.create(name=f"registered {self.context.stay}")
            return complete()

        @step()
        def give_up(self):
            self.context.done.append("give up")
            return fail("no papers")


declare(timedelta(seconds=float(os.environ.get("STORY_HOUR", "3600"))))
