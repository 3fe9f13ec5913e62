"""Programs whose crash points are tested: events without a model, emitted by code and by webhooks."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import timedelta

from django.db import OperationalError
from django.test import RequestFactory
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    FreeEvent,
    agent,
    complete,
    emit,
    event_workflow,
    handler,
    idempotency_key,
    on_event,
    step,
    wait_for_event,
    workflow,
)
from django_ai.automation.contrib.webhooks import HmacSignature, webhook_view
from django_ai.automation.events.models import CallbackExecution, Event
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import QUICK, noon, started
from tests.support.rows import leave


def emitters() -> None:
    for name in ("asked", "answered", "planned", "hook:*"):
        FreeEvent(name)

    @on_event("asked", name="answers", retry=QUICK)
    def answers(event):
        leave(f"asked {event.payload['n']}")
        emit("answered", {"n": event.payload["n"], "word": "yes"})
        if CallbackExecution.objects.get(callback="answers", event=event).attempt == 0:
            raise RuntimeError("the first try stumbles")

    @workflow("asks")
    class Asks:
        class Context(BaseModel):
            n: int
            word: str = ""

        @step(start=True)
        def ask(self):
            leave("asks")
            emit("asked", {"n": self.context.n})
            return wait_for_event("answered", match={"n": "{{ ctx.n }}"}, then=self.end)

        @step(atomic=False)
        def end(self):
            emit("planned", {"n": 5}, key=idempotency_key(), at=timezone.now() + timedelta(hours=1))
            leave(f"outside end {self.context.word}")
            return complete()

    @event_workflow("planned", offset=timedelta(minutes=-30), name="prepare")
    class Prepare:
        class Context(BaseModel):
            n: int

        @step(start=True)
        def begin(self):
            leave(f"prepare {self.context.n}")
            return complete()

    @agent("counts", spawn_on="asked", match={"n": "{{ ctx.n }}"}, singleton=True)
    class Counts:
        class Context(BaseModel):
            n: int
            heard: int = 0

        @handler("answered")
        def answered(self, ctx):
            ctx.heard += 1
            leave(f"counts {ctx.heard}")

    @on_event("hook:*", name="hooked")
    def hooked(event):
        leave(f"hooked {event.payload['n']}")


def emitted(n: int, hours: float) -> None:
    emit("planned", {"n": n}, key=f"planned {n}", at=noon(hours))


def withdrawn(n: int) -> None:
    for event in Event.objects.filter(event_name="planned", status="pending", payload__n=n):
        event.cancel()


EMITTED = Program(
    "emitted",
    emitters,
    [
        web(lambda: started("asks", n=7)),
        web(lambda: emitted(1, 2)),
        web(lambda: emitted(2, 2)),
        work(),
        work(0.1),
        web(lambda: withdrawn(2), 0.2),
        work(0.7),
        work(1.1),
        work(1.6),
        work(2.1),
        prune_in_batches(3),
    ],
    ["asked 7", "asks", "counts 1", "prepare 1", "prepare 5", "outside end yes"],
)


def hook_called(n: int) -> None:
    """Send a webhook, as its sender does: again and again, until the answer is 2xx."""
    verifier = HmacSignature("secret", header="X-Signature")
    view = webhook_view(FreeEvent("hook:*"), verifier=verifier)
    body = json.dumps({"type": "called", "n": n}).encode()
    signature = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    headers = {"X-Signature": signature}
    answer = view(RequestFactory().post("/", body, content_type="application/json", headers=headers))
    if answer.status_code == 503:
        raise OperationalError("the sender is asked to try again")
    assert answer.status_code == 200


WEBHOOKS = Program(
    "webhooks",
    emitters,
    [
        web(lambda: hook_called(1)),
        web(lambda: hook_called(1)),
        work(),
        web(lambda: hook_called(2), 0.5),
        web(lambda: hook_called(1), 0.5),
        work(1),
        prune_in_batches(2),
    ],
    ["hooked 1", "hooked 2"],
)
