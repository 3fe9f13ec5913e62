"""``subscribe(subscriber)``: how the layers above are notified of events. This layer does not name them.

A subscriber overrides the methods that it needs. All but ``prepare`` and ``notify`` run inside the transaction that
records the change, so what they write commits with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q

from ..queues.advance import Started
from .models import Event, Shapes


@dataclass(frozen=True, slots=True)
class Notification:
    """A milestone of an event that has fired: its occurrence (``""``), or the key of an offset from its date."""

    event: Event
    milestone: str


class Subscriber:
    """The interface of a layer that follows events. Every method does nothing by default."""

    def plan(self, events: Sequence[Event], now: datetime, *, fresh: bool) -> None:
        """Events were recorded (``fresh``), moved, armed or disarmed: update the runs that are planned for them."""

    def needs_recorded_after(self, event: Event) -> bool:
        """Return whether ``Event.recorded_after`` must be set when this event is recorded and due at once."""
        return False

    def has_begun(self, event: Event) -> bool:
        """Return whether a run that was planned for this event has started."""
        return False

    def prepare(self, events: Sequence[Event]) -> None:
        """These events are about to occur, or to be planned again. No transaction is open: call user code now whose
        result ``occurred`` and ``plan`` need."""

    def occurred(self, events: Sequence[Event], now: datetime) -> None:
        """These events occur in this transaction."""

    def started_by(self, event: Event, now: datetime) -> Sequence[Started] | None:
        """Return the rows that ``occurred`` would insert for the event, which is about to occur, if it would do nothing
        else: then they may be inserted without it. None: it must be called."""
        return None

    def wants_notification(self, event: Event, milestone: str) -> bool:
        """Return whether ``notify`` must be called after this milestone of the event has committed."""
        return False

    def notify(self, notifications: Sequence[Notification], shapes: Shapes, now: datetime) -> None:
        """These milestones are committed; ``shapes`` are the routing shapes of their events.

        They may have been committed some time ago by a process that died before or after it notified: this must be
        idempotent, and compare positions to exclude runs that are newer than the milestone.
        """

    def withdrawn(self, events: Sequence[Event], now: datetime, reason: str = "") -> None:
        """These events were cancelled, expired or disarmed for good: runs that are planned for them must not start.

        ``reason``: why, where the rows of the events do not have it.
        """

    def entities_deleted(self, label: str, entity_ids: Sequence[str], now: datetime) -> None:
        """These entities of the model ``label`` were deleted."""

    def is_unfinished(self, event: Event) -> bool:
        """Return whether something that this event has started has not ended."""
        return False

    def needed_events(self) -> Sequence[Q]:
        """Return the conditions for events that must not be pruned yet, whatever their age."""
        return ()


_subscribers: list[Subscriber] = []


def subscribe(subscriber: Subscriber) -> None:
    """Notify ``subscriber`` of all events from now on.

    There is one subscriber of each class: ``ready()`` runs again when a test changes INSTALLED_APPS, and nothing may be
    notified twice because of that.
    """
    if not any(type(each) is type(subscriber) for each in _subscribers):
        _subscribers.append(subscriber)


def subscribers() -> tuple[Subscriber, ...]:
    return tuple(_subscribers)
