"""The automations of the old release."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation import agent, complete, goto, handler, on_event, step, wait, workflow
from tests.apps.story.models import Mark


def mark(what: str) -> None:
    Mark.objects.create(name=f"old {what}")


@on_event("order_placed", name="release.greet")
def greet(event):
    mark(f"greet {event.entity.name}")


@on_event("order_placed", name="release.only_old")
def only_old(event):
    mark(f"only_old {event.entity.name}")


@on_event("order_archived", name="release.archive")
def archive(event):
    mark(f"archive {event.entity.name}")


@workflow("release:ship", version=1)
class Ship:
    class Context(BaseModel):
        item: str

    @step(start=True)
    def begin(self):
        return wait("release:go", then=self.pack)

    @step()
    def pack(self):
        mark(f"pack {self.context.item}")
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
        return wait("release:go", then=self.wrap)

    @step()
    def wrap(self):
        mark(f"wrap {self.context.item}")
        return complete()


@workflow("release:gone")
class Gone:
    class Context(BaseModel):
        item: str

    @step(start=True)
    def begin(self):
        mark(f"gone {self.context.item}")
        return complete()


@agent("release:keeper", spawn_on="order_placed")
class Versioned:
    class Context(BaseModel):
        entity_id: str
        seen: int = 0

    @handler("order_placed")
    def placed(self, ctx, event):
        ctx.seen += 1
        mark(f"keeper placed {event.entity.name}")

    @handler("order_placed")
    def old_habit(self, event):
        mark(f"keeper old_habit {event.entity.name}")


@agent("release:porter", spawn_on="order_placed")
class Porter:
    class Context(BaseModel):
        entity_id: str

    @handler("order_placed")
    def placed(self, event):
        mark(f"porter placed {event.entity.name}")
