"""Events without a model for the tests that emit, and what hears them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from django_ai.automation import FreeEvent, on_event
from django_ai.automation.events.models import Event
from tests.support.rows import leave

PAID = "payment.received"


class Payment(BaseModel):
    order_id: int
    cents: int = 0


def paid(payload: type[BaseModel] | None = None) -> FreeEvent:
    """Declare the event that most tests emit."""
    return FreeEvent(PAID, payload=payload)


def hear(event: FreeEvent | str, name: str = "heard", decorator: Callable[..., Any] = on_event, **options: Any) -> None:
    """Leave ``name`` and the payload behind for each event that is heard."""

    @decorator(event, name=name, **options)
    def heard(event: Event) -> None:
        leave(f"{name} {dict(sorted(event.payload.items()))}")


def the_event(**lookups: Any) -> Event:
    return Event.objects.get(entity_type="", **lookups)
