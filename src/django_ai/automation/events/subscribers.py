"""``subscribe(listener)``: how the floors above hear of events. This floor names none of them.

A listener overrides the methods that it needs. All but ``tell`` run inside the transaction that makes their news true,
so what they write commits with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q

from .models import Event, Shapes


@dataclass(frozen=True, slots=True)
class Notification:
    """A beat of an event that has come: its occurrence (``""``), or the key of an offset from it."""

    event: Event
    milestone: str


class Listener:
    """Somebody who follows events. Every method does nothing by default."""

    def plan(self, events: Sequence[Event], now: datetime, *, fresh: bool) -> None:
        """Events were recorded (``fresh``), moved, armed or disarmed: bring what is planned for them in line."""

    def has_begun(self, event: Event) -> bool:
        """Say whether something that was planned for this event has begun."""
        return False

    def occurred(self, events: Sequence[Event], now: datetime) -> None:
        """These events occur in this transaction."""

    def wants_notification(self, event: Event, milestone: str) -> bool:
        """Say whether ``tell`` must be called after this beat of the event has committed."""
        return False

    def notify(self, news: Sequence[Notification], shapes: Shapes, now: datetime) -> None:
        """These beats are committed; ``shapes``: what their events are looked up by. Perhaps some time ago, by a
        process that died before it had told, or had told all: this must be idempotent, and a position says who is too
        young to hear of them."""

    def withdrawn(self, events: Sequence[Event], now: datetime, reason: str = "") -> None:
        """These events were cancelled, expired or disarmed for good: what is planned for them must not begin.
        ``reason``: why, where the events do not say it themselves."""

    def entities_deleted(self, label: str, entity_ids: Sequence[str], now: datetime) -> None:
        """These entities of the model ``label`` were deleted."""

    def still_needs(self) -> Sequence[Q]:
        """Return which events must not be cleaned up yet, whatever their age."""
        return ()


_listeners: list[Listener] = []


def subscribe(listener: Listener) -> None:
    """Let ``listener`` follow all events, from the next one on. Of one class there is one: apps are made ready again
    where a test changes INSTALLED_APPS, and nothing may be told twice for that."""
    if not any(type(each) is type(listener) for each in _listeners):
        _listeners.append(listener)


def subscribers() -> tuple[Listener, ...]:
    return tuple(_listeners)
