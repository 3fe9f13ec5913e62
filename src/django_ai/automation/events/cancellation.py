"""Cancellation: keep pending events from occurring."""

from __future__ import annotations

from datetime import datetime

from django.db import transaction
from django.db.models import QuerySet

from ..db.writer import alias_of
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from .callbacks import CANCELLED
from .models import Event, EventStatus
from .subscribers import subscribers
from .timing import has_callback


def cancel_events(events: QuerySet[Event, Event], now: datetime) -> int:
    """Cancel those of ``events`` that have not occurred, and return how many."""
    # An event with a later offset may be parked after it has occurred.
    pending = [EventStatus.PENDING, EventStatus.PARKED]
    with transaction.atomic(using=alias_of(Event)):
        rows = list(events.select_for_update().filter(status__in=pending, occurred_at=None))
        for row in rows:
            row.status = EventStatus.CANCELLED
            wake_at = now if has_callback(row, CANCELLED) else None
            revoke(Event.objects.filter(pk=row.pk), status=EventStatus.CANCELLED, wake_at=wake_at)
        if rows:
            for subscriber in subscribers():
                subscriber.withdrawn(rows, now)
            ring_after_commit(alias_of(Event), Event)
    return len(rows)
