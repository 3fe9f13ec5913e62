"""Types of events: definitions, callbacks, claims."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, assert_type
from zoneinfo import ZoneInfo

from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel

from django_ai.automation import (
    EventDefinition,
    EventTrigger,
    FreeEvent,
    GiveUp,
    Retry,
    RetryAfter,
    claims,
    emit,
    idempotency_key,
    on_event,
    on_event_cancelled,
    on_event_created,
    register_events,
)
from django_ai.automation.contrib.webhooks import Delivery, StandardWebhooks, Verified, webhook_view
from django_ai.automation.events.models import Event, EventClaim
from django_ai.automation.testing import assert_occurred
from tests.apps.reservations.models import Guest

LOST = EventDefinition("parcel_lost")

register_events(Guest, LOST, EventDefinition("guest_named"))
register_events(Guest, "parcel_lost")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@on_event(LOST)
def ask(event: Event) -> None:
    assert_type(claims.hold(LOST, {"pk": 1}), EventClaim)
    assert_occurred(LOST)


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


def changes_have_types(event: Event) -> None:
    assert_type(event.changes, dict[str, tuple[Any, Any]])


def is_named(name: object) -> bool:
    return bool(name)


def zone_of(parcel: object) -> ZoneInfo | str | None:
    return None if parcel is None else "Europe/Berlin"


def zones_have_types(event: Event) -> None:
    assert_type(event.zone, tzinfo)


def arguments_are_checked() -> None:
    EventDefinition("parcel_found", was={"lost": True}, becomes={"lost": [False], "found_by": is_named})
    EventDefinition("parcel_found", becomes="found")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventDefinition("parcel_lost", trigger=EventTrigger.UPDATE, watch_fields=["lost"])
    EventDefinition("parcel_due", date_field="due_at", timezone="depot__tz")
    EventDefinition("parcel_due", date_field="due_at", timezone=ZoneInfo("Europe/Berlin"))
    EventDefinition("parcel_due", date_field="due_at", timezone=zone_of)
    EventDefinition("parcel_due", timezone=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventDefinition("parcel_lost", grace=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    on_event("parcel_lost", offset=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(base_delay=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(Retry().delay(1), timedelta | None)
    assert_type(Retry(retry_on=OSError, give_up_on=[FileNotFoundError], jitter=0.5).retries(OSError()), bool)
    Retry(retry_on="OSError")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    raise RetryAfter(timedelta(seconds=30), "HTTP 429", counts=True) from GiveUp("no")


def claims_have_types() -> None:
    assert_type(claims.hold("parcel_lost", {"pk": 1}, expires_in=None), EventClaim)
    assert_type(claims.release("parcel_lost", {"pk": 1}), bool)
    assert_type(claims.holder("parcel_lost", {"pk": 1}), EventClaim | None)


class Payment(BaseModel):
    cents: int


PAID = FreeEvent("payment.received", payload=Payment)


def events_without_a_model() -> None:
    assert_type(emit(PAID, {"cents": 5}, key="a"), Event)
    assert_type(emit("payment.received", Payment(cents=5), at=datetime.now(UTC)), Event)
    emit(PAID, [5])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    emit(PAID, key=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FreeEvent("payment.received", payload=dict)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Token:
    def verify(self, request: HttpRequest, body: bytes) -> Verified:
        return Verified("a", type="b")


def webhooks_have_types() -> None:
    view = webhook_view(PAID, verifier=Token(), namespace=lambda delivery: delivery.kwargs["tenant"])
    assert_type(view(HttpRequest()), HttpResponse)
    webhook_view(lambda delivery: assert_type(delivery, Delivery).id, verifier=StandardWebhooks("secret"))
    webhook_view(PAID, verifier="secret")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
