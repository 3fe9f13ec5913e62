"""Callbacks: each writes one letter for one event, or one note for several."""

from __future__ import annotations

from datetime import timedelta

from dateutil.relativedelta import relativedelta
from django.utils.timezone import localtime

from django_ai.automation import (
    Debounce,
    Retry,
    Throttle,
    idempotency_key,
    on_event,
    on_event_cancelled,
    on_event_created,
)
from django_ai.automation.events.models import Event

from ..models import STAY_CALLED_OFF, Message
from ..pace import hours


def write(event: Event, text: str) -> None:
    Message.objects.create(reservation_id=event.entity_id, text=text, key=idempotency_key())


@on_event_created("checkin_due")
def note_the_booking(event: Event) -> None:
    write(event, f"Booked: {event.entity}")


@on_event("reservation_confirmed", retry=Retry(max_attempts=5))
def confirm(event: Event) -> None:
    write(event, f"{event.entity.guest}, your room {event.entity.room} is confirmed")


@on_event("reservation_confirmed", throttle=Throttle(2, per=timedelta(seconds=1)))
def send_the_house_rules(event: Event) -> None:
    """The mail service takes two letters a second, from all workers together."""
    if event.entity is None:
        return  # deleted while the letter waited for its turn
    write(event, f"House rules for room {event.entity.room}")


@on_event("guest_wrote", debounce=Debounce(hours(0.5), key="{{ instance.guest_id }}"))
def note_for_the_desk(events: list[Event]) -> None:
    """Half an hour after the last letter of a guest the desk gets one note of all of them."""
    texts = " ".join(event.entity.text for event in events)
    Message.objects.create(text=f"{events[-1].entity.guest} wrote: {texts}"[:200], key=idempotency_key())


@on_event("checkin_due")
def welcome(event: Event) -> None:
    write(event, f"Welcome, {event.entity.guest}")


@on_event("checkout_due", offset=hours(1))
@on_event("reservation_cancelled")
def ask_how_it_was(event: Event) -> None:
    """One function for two events."""
    write(event, f"{event.entity.guest}, how did you find us?")


@on_event(STAY_CALLED_OFF)
def charge_a_fee(event: Event) -> None:
    before, _ = event.changes["status"]
    write(event, f"{event.entity.guest}, your stay was {before}: we charge one night")


@on_event("checkout_due", offset=relativedelta(months=+11))
def invite_again(event: Event) -> None:
    """By the calendar: eleven months later at the same local time, across changes to daylight saving time."""
    write(event, f"{event.entity.guest}, the same room next year?")


@on_event_cancelled("checkin_due")
def note_the_deletion(event: Event) -> None:
    """The reservation is deleted; ``event.entity`` is its last saved state."""
    checkin = localtime(event.entity.checkin_at)
    Message.objects.create(text=f"Deleted: {event.entity.room} from {checkin:%H:%M:%S}")
