"""What the benchmark runs: the least that a step can do, so that the figures are the engine's."""

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import complete, event_workflow, get_wake, goto, sleep, step, workflow


@workflow("one")
class One:
    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    def only(self):
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
