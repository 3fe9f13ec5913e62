"""Types of events: definitions, callbacks, claims."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from django_ai.automation import (
    EventDefinition,
    EventTrigger,
    Retry,
    claims,
    idempotency_key,
    on_event,
    on_event_cancelled,
    on_event_created,
)
from django_ai.automation.events.models import Event, EventClaim


@on_event("parcel_lost", offset=timedelta(hours=-1), retry=Retry(max_attempts=2), atomic=False)
def search(event: Event) -> int:
    return len(f"{event}")


@on_event_created("parcel_lost")
def note(event: Event, loud: bool = False) -> str:
    return "!" if loud else f"{event}"


@on_event_cancelled("parcel_lost")
def forget(event: Event) -> None:
    assert_type(idempotency_key(), str)


def functions_keep_their_signatures(event: Event) -> None:
    assert_type(search(event), int)
    assert_type(note(event, loud=True), str)
    search()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    note(event, quiet=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    forget("parcel_lost")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def arguments_are_checked() -> None:
    EventDefinition("parcel_lost", trigger=EventTrigger.UPDATE, watch_fields=["lost"])
    EventDefinition("parcel_lost", grace=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    on_event("parcel_lost", offset=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(base_delay=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(Retry().delay(1), timedelta | None)


def claims_have_types() -> None:
    assert_type(claims.hold("parcel_lost", {"pk": 1}, expires_in=None), EventClaim)
    assert_type(claims.release("parcel_lost", {"pk": 1}), bool)
    assert_type(claims.holder("parcel_lost", {"pk": 1}), EventClaim | None)
