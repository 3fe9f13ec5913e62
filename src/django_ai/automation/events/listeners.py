"""``subscribe(listener)``: how the floors above hear of events. This floor names none of them.

A listener overrides the methods that it needs. All but ``tell`` run inside the transaction that makes their news true,
so what they write commits with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ..queues.clock import Offset
from .models import Event


class Listener:
    """Somebody who follows events. Every method does nothing by default."""

    def offsets(self, event_name: str) -> Sequence[Offset]:
        """Return the offsets at which ``fired`` shall be called for this event."""
        return ()

    def planned_offsets(self, event_name: str) -> Sequence[Offset]:
        """Return the offsets at which ``plan`` puts rows of its own."""
        return ()

    def plan(self, events: Sequence[Event], now: datetime, *, fresh: bool) -> None:
        """Events were recorded (``fresh``), moved, armed or disarmed: bring what is planned for them in line."""

    def fired(self, event: Event, offset: Offset, now: datetime) -> None:
        """The moment ``offset`` before or after the event's date has come, and its condition holds."""

    def occurred(self, events: Sequence[Event], now: datetime) -> None:
        """These events occur in this transaction."""

    def wants_telling(self, event_name: str) -> bool:
        """Say whether ``tell`` must be called after an occurrence has committed."""
        return False

    def tell(self, events: Sequence[Event], now: datetime, *, late: bool) -> None:
        """These occurrences are committed. ``late``: some time ago, by a process that died before it had told; it may
        have told some, so this must be idempotent."""

    def withdrawn(self, events: Sequence[Event], now: datetime) -> None:
        """These events were cancelled, expired or disarmed for good: what is planned for them must go."""

    def entity_deleted(self, label: str, entity_id: str, now: datetime) -> None:
        """This entity was deleted."""


_listeners: list[Listener] = []


def subscribe(listener: Listener) -> None:
    """Let ``listener`` follow all events, from the next one on."""
    if listener not in _listeners:
        _listeners.append(listener)


def listeners() -> tuple[Listener, ...]:
    return tuple(_listeners)
