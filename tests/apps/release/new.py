"""The automations of the new release: raised versions, renamed steps and handlers, removals and additions."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import agent, complete, goto, handler, on_event, step, wait, workflow
from tests.apps.story.models import Mark


def mark(what: str) -> None:
    Mark.objects.create(name=f"new {what}")


@on_event("order_placed", name="release.greet")
def greet(event):
    mark(f"greet {event.entity.name}")


@on_event("order_placed", name="release.only_new")
def only_new(event):
    mark(f"only_new {event.entity.name}")


@on_event("order_rated", name="release.thank")
def thank(event):
    mark(f"thank {event.entity.name}")


@workflow("release:ship", version=2)
class Ship:
    class Context(BaseModel):
        item: str
        address: str

    @staticmethod
    def migrate_context(data, from_version):
        return {**data, "address": f"unknown to version {from_version}"}

    @step(start=True)
    def begin(self):
        return wait("release:go", then=self.pack)

    @step()
    def pack(self):
        mark(f"pack {self.context.item} for {self.context.address}")
        return goto(self.send)

    @step()
    def send(self):
        mark(f"send {self.context.item}")
        return complete()


@workflow("release:steps")
class Steps:
    class Context(BaseModel):
        item: str

    @step(start=True)
    def begin(self):
        return wait("release:go", then=self.wrap_up)

    @step()
    def wrap_up(self):
        mark(f"wrap_up {self.context.item}")
        return complete()


@workflow("release:brand_new")
class BrandNew:
    class Context(BaseModel):
        item: str

    @step(start=True)
    def begin(self):
        mark(f"brand_new {self.context.item}")
        return complete()


@agent("release:keeper", spawn_on="order_placed", version=2)
class Versioned:
    class Context(BaseModel):
        entity_id: str
        seen: int
        mood: str

    @classmethod
    def create_context(cls, event):
        return cls.Context(entity_id=event.entity_id, seen=0, mood="new")

    @staticmethod
    def migrate_context(data, from_version):
        return {**data, "mood": f"of {from_version}"}

    @handler("order_placed")
    def placed(self, ctx, event):
        ctx.seen += 1
        mark(f"keeper placed {event.entity.name}")

    @handler("order_placed")
    def new_habit(self, event):
        mark(f"keeper new_habit {event.entity.name}")
