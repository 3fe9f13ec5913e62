"""The calls that are compared with those of the peers: one step, and five."""

from pydantic import BaseModel

from bench.peers.logbook import note
from django_ai.automation import complete, goto, step, workflow


@workflow("peers_one")
class One:
    class Context(BaseModel):
        number: int
        text: str

    @step(start=True)
    def only(self):
        note(self.context.number)
        return complete()


@workflow("peers_five")
class Five:
    class Context(BaseModel):
        number: int
        text: str

    @step(start=True)
    def first(self):
        note(self.context.number)
        self.context.number += 1
        return goto(self.second)

    @step()
    def second(self):
        note(self.context.number)
        self.context.number += 1
        return goto(self.third)

    @step()
    def third(self):
        note(self.context.number)
        self.context.number += 1
        return goto(self.fourth)

    @step()
    def fourth(self):
        note(self.context.number)
        self.context.number += 1
        return goto(self.fifth)

    @step()
    def fifth(self):
        note(self.context.number)
        return complete()
