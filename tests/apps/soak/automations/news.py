"""News: events without a model, which the outside emits under keys, some of them several times. Each is heard alone,
and once more in a batch."""

from __future__ import annotations

from datetime import timedelta

from django_ai.automation import Batch, FreeEvent, on_event

from ..models import Effect

NEWS = FreeEvent("soak_news")
LATER = timedelta(milliseconds=600)
BATCH = Batch(4, timeout=timedelta(milliseconds=500))


@on_event("soak_news", name="news")
def heard(event):
    Effect.objects.create(owner=f"{event.key}:news", key="heard", serial=event.pk, not_before=event.at)


@on_event("soak_news", name="news later", offset=LATER)
def heard_later(event):
    Effect.objects.create(owner=f"{event.key}:news", key="later", serial=event.pk, not_before=event.at + LATER)


@on_event("soak_news", name="news batch", batch=BATCH)
def heard_together(events):
    for event in events:
        Effect.objects.create(owner=f"{event.key}:news", key="together", serial=event.pk, not_before=event.at)
