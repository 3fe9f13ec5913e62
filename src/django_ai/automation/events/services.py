"""``EventProcessor``: the façade of older releases. It holds no logic of its own; all of it ends in ``drain``."""

from __future__ import annotations

from datetime import datetime

from ..queues.drain import drain
from ..values.clock import aware
from .models import Event

__all__ = ["EventProcessor", "event_processor"]


class EventProcessor:
    """Performs events by hand. Not needed where a worker runs."""

    def process_due_events(self, now: datetime | None = None) -> int:
        """Perform everything that is due at ``now`` (default: the wall clock); return how many rows were performed."""
        return drain(aware(now, "now") if now is not None else None)

    def process_event(self, event: Event, now: datetime | None = None) -> bool:
        """Perform what is due, and say whether ``event`` has occurred then."""
        self.process_due_events(now)
        event.refresh_from_db()
        return event.occurred_at is not None


event_processor = EventProcessor()
