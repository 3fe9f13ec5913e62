"""The automations of the benchmarks. Their steps do as little as possible, so that the engine is measured."""

import asyncio
import time
from datetime import timedelta

from pydantic import BaseModel

from bench.peers.logbook import note
from django_ai.automation import (
    agent,
    complete,
    event_workflow,
    get_wake,
    goto,
    handler,
    on_event,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)

from .models import Plain


@workflow("one")
class One:
    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    def only(self):
        return complete()


@workflow("noted")
class Noted:
    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    def only(self):
        note(self.context.number)
        return complete()


@workflow("five")
class Five:
    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    def first(self):
        self.context.number += 1
        return goto(self.second)

    @step()
    def second(self):
        self.context.number += 1
        return goto(self.third)

    @step()
    def third(self):
        self.context.number += 1
        return goto(self.fourth)

    @step()
    def fourth(self):
        self.context.number += 1
        return goto(self.fifth)

    @step()
    def fifth(self):
        return complete(number=5)


@workflow("writing")
class Writing:
    """Five steps, each of which inserts a row."""

    class Context(BaseModel):
        left: int = 5

    @step(start=True)
    def write(self):
        Plain.objects.create(name="written")
        self.context.left -= 1
        return goto(self.write) if self.context.left else complete()


@workflow("timer")
class Timer:
    class Context(BaseModel):
        seconds: float

    @step(start=True)
    def rest(self):
        if get_wake().reason == "timer":
            return complete()
        return sleep(timedelta(seconds=self.context.seconds))


@event_workflow("eventful_ready", name="reaction")
class Reaction:
    class Context(BaseModel):
        entity_id: str

    @step(start=True)
    def react(self):
        return complete()


@agent("keeper", match={"owner": "{{ ctx.owner }}"})
class Versioned:
    class Context(BaseModel):
        owner: int
        notes: int = 0

    @handler("note_taken")
    def keep(self, ctx):
        ctx.notes += 1

    @handler("note_due", match={"owner": "{{ ctx.owner }}", "due_at__isnull": False})
    def remind(self, ctx):
        ctx.notes -= 1


@workflow("wait for a note")
class WaitForNote:
    class Context(BaseModel):
        owner: int

    @step(start=True)
    def listen(self):
        if get_wake().reason == "event":
            return complete()
        return wait_for_event("note_taken", match={"owner": "{{ ctx.owner }}"})


@workflow("wait for all")
class WaitForAll:
    class Context(BaseModel):
        owner: int

    @step(start=True)
    def listen(self):
        if get_wake().reason == "signal":
            return complete()
        return wait("all")


@workflow("month")
class Month:
    class Context(BaseModel):
        days: int

    @step(start=True)
    def day(self):
        if self.context.days == 0:
            return complete()
        self.context.days -= 1
        return sleep(timedelta(days=1))


@on_event("note_due")
def read_it(event):
    pass


class Wait(BaseModel):
    seconds: float = 1.0


@workflow("waits")
class Waits:
    """A slow service, called by plain code."""

    Context = Wait

    @step(start=True, atomic=False)
    def begin(self):
        time.sleep(self.context.seconds)
        return complete()


@workflow("awaits")
class Awaits:
    """A slow service, called by async code."""

    Context = Wait

    @step(start=True, atomic=False)
    async def begin(self):
        await asyncio.sleep(self.context.seconds)
        return complete()


@on_event("heard_due")
def touch_nothing(event):
    pass


@on_event("written_due")
def write_a_row(event):
    Plain.objects.create(name="reminded")
