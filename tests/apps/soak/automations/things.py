"""Subscribers to the events of things: a callback for each milestone, and an agent for each thing.

Each call writes an effect: ``owner`` names the subscriber, ``key`` the milestone, and ``serial`` is the event's key.
Each call fails ``event.pk % 3`` times before it succeeds.
"""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    Concurrency,
    Debounce,
    Retry,
    agent,
    handler,
    idempotency_key,
    on_event,
    on_event_cancelled,
)

from ..models import Effect
from .programs import lane

RETRY = Retry(max_attempts=4, base_delay=timedelta(milliseconds=50), backoff_factor=1)
BEATS = {"soak_due-": timedelta(milliseconds=-400), "soak_due": None, "soak_due+": timedelta(milliseconds=600)}
"""Milestones of a scheduled event, with their offsets."""


class ToldToFail(Exception):
    """The attempt fails on purpose."""


def leave(owner: str, key: str, event) -> None:
    Effect.objects.create(owner=owner, key=key, serial=event.pk, idempotency=idempotency_key())


def call(key: str, event_name: str, decorator=on_event, **options):
    def called(event):
        leave(f"{event.entity.name}:call", key, event)
        if event.executions.get(callback=f"soak:{key}").attempt < event.pk % 3:
            raise ToldToFail

    decorator(event_name, name=f"soak:{key}", retry=RETRY, **lane(priority=lambda event: event.pk % 2), **options)(
        called
    )


for each in ("soak_made", "soak_ready", "soak_unready", "soak_gone"):
    call(each, each)
call("soak_touched", "soak_touched", concurrency=Concurrency(1, key="{{ instance.pk }}"))
for each, offset in BEATS.items():
    call(each, "soak_due", offset=offset)
for each in ("soak_made", "soak_ready", "soak_due", "soak_touched", "soak_unready"):
    call(f"{each} cancelled", each, on_event_cancelled)


@on_event(
    "soak_touched",
    name="rested",
    debounce=Debounce(timedelta(milliseconds=300), key="{{ instance.pk }}", max_wait=timedelta(seconds=1)),
)
def rested(events):
    """The touches of a thing, some at a time: each of them once."""
    for event in events:
        Effect.objects.create(owner=f"{event.entity.name}:call", key="rested", serial=event.pk)


@agent(
    "soak:keeper",
    spawn_on="soak_made",
    match={"name": "{{ ctx.name }}"},
    singleton=True,
    default_retry=RETRY,
    **lane(queue="keepers", priority=lambda event: event.pk % 3),
)
class Versioned:
    class Context(BaseModel):
        name: str
        tally: list[str] = []
        tries: dict[str, int] = {}

    @classmethod
    def create_context(cls, event):
        return cls.Context(name=event.entity.name)

    def _leave(self, ctx, key, event):
        entry = f"{key}:{event.pk}"
        leave(f"{ctx.name}:keeper", key, event)
        if ctx.tries.get(entry, 0) < event.pk % 3:
            ctx.tries[entry] = ctx.tries.get(entry, 0) + 1
            raise ToldToFail
        ctx.tally.append(entry)

    @handler("soak_made")
    def made(self, ctx, event):
        self._leave(ctx, "soak_made", event)

    @handler("soak_ready", concurrency=Concurrency(2))
    def ready(self, ctx, event):
        self._leave(ctx, "soak_ready", event)

    @handler("soak_touched")
    def touched(self, ctx, event):
        self._leave(ctx, "soak_touched", event)

    @handler("soak_due", offset=BEATS["soak_due-"])
    def before(self, ctx, event):
        self._leave(ctx, "soak_due-", event)

    @handler("soak_due")
    def due(self, ctx, event):
        self._leave(ctx, "soak_due", event)

    @handler("soak_due", offset=BEATS["soak_due+"])
    def after(self, ctx, event):
        self._leave(ctx, "soak_due+", event)

    @handler("soak_gone")
    def gone(self, ctx, event, run):
        self._leave(ctx, "soak_gone", event)
        AgentManager.complete(run)
