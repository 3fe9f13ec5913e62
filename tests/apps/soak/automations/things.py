"""What listens to the events of things: functions for each milestone, and an agent for each thing.

Each leaves an effect: its owner says who was called, its key for which milestone, and its serial is the event.
Every third one fails at its first try, every other third at its first two.
"""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import AgentManager, Retry, agent, handler, idempotency_key, on_event, on_event_cancelled

from ..models import Effect

RETRY = Retry(max_attempts=4, base_delay=timedelta(milliseconds=50), backoff_factor=1)
BEATS = {"soak_due-": timedelta(milliseconds=-400), "soak_due": None, "soak_due+": timedelta(milliseconds=600)}
"""Beats of a scheduled event, with their offsets."""


class ToldToFail(Exception):
    """This try fails."""


def leave(owner: str, key: str, event) -> None:
    Effect.objects.create(owner=owner, key=key, serial=event.pk, idempotency=idempotency_key())


def call(key: str, event_name: str, decorator=on_event, **options):
    def called(event):
        leave(f"{event.entity.name}:call", key, event)
        if event.executions.get(callback=f"soak:{key}").attempt < event.pk % 3:
            raise ToldToFail

    decorator(event_name, name=f"soak:{key}", retry=RETRY, **options)(called)


for each in ("soak_made", "soak_ready", "soak_touched", "soak_gone"):
    call(each, each)
for each, offset in BEATS.items():
    call(each, "soak_due", offset=offset)
for each in ("soak_made", "soak_ready", "soak_due", "soak_touched"):
    call(f"{each} cancelled", each, on_event_cancelled)


@agent("soak:keeper", spawn_on="soak_made", match={"name": "{{ ctx.name }}"}, singleton=True, default_retry=RETRY)
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

    @handler("soak_ready")
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
