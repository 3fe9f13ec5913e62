"""``EventProcessor``: a façade that keeps the API of older releases. All of its methods call ``drain``."""

from __future__ import annotations

from datetime import datetime

from ..queues.drain import drain
from ..values.clock import aware
from .models import Event

__all__ = ["EventProcessor", "event_processor"]


class EventProcessor:
    """Performs due rows by hand. A project that runs a worker does not need it.

    Example:
        In a script, without a worker::

            performed = EventProcessor().process_due_events()
    """

    def process_due_events(self, now: datetime | None = None) -> int:
        """Perform everything that is due.

        Each row is performed in a transaction of its own, as a worker does it.

        Args:
            now: The moment at which rows must be due, as a datetime with a time zone. Default: the present time.

        Returns:
            The number of rows that were performed.

        Raises:
            NaiveDatetimeError: If ``now`` has no time zone.

        Example:
            Perform what is due within the next hour::

                event_processor.process_due_events(timezone.now() + timedelta(hours=1))
        """
        return drain(aware(now, "now") if now is not None else None)

    def process_event(self, event: Event, now: datetime | None = None) -> bool:
        """Perform everything that is due, and return whether one event has occurred.

        Args:
            event: The event to look at afterwards. Its fields are read again from the database.
            now: The moment at which rows must be due, as a datetime with a time zone. Default: the present time.

        Returns:
            True if ``event`` has occurred.

        Raises:
            NaiveDatetimeError: If ``now`` has no time zone.

        Example:
            In a test without the time machine::

                assert event_processor.process_event(Event.objects.get(event_name="invoice_paid"))
        """
        self.process_due_events(now)
        event.refresh_from_db()
        return event.occurred_at is not None


event_processor = EventProcessor()
