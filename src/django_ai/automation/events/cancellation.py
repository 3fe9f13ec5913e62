"""Cancellation: keep pending events from occurring."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from ..db.writer import alias_of
from ..queues.acting import signed
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..values.json_text import storable
from .models import Event, EventStatus
from .subscribers import subscribers
from .timing import announces_cancellation


def cancel_events(events: QuerySet[Event, Event], now: datetime) -> int:
    """Cancel those of ``events`` that have not occurred, and return how many. Their ``error`` says who
    did it, if somebody acts."""
    # An event with a later offset may be parked after it has occurred.
    pending = [EventStatus.PENDING, EventStatus.PARKED]
    with transaction.atomic(using=alias_of(Event)):
        rows = list(events.select_for_update().filter(status__in=pending, occurred_at=None))
        note = storable(signed("Cancelled", "")) if rows else ""
        for row in rows:
            row.status = EventStatus.CANCELLED
            changes: dict[str, Any] = {"wake_at": now if announces_cancellation(row) else None}
            if row.is_free:
                changes["active_key"] = None  # it may be emitted again under its key
            if note:
                changes["error"] = row.error = f"{row.error}\n{note}".strip()
            revoke(Event.objects.filter(pk=row.pk), status=EventStatus.CANCELLED, **changes)
        if rows:
            for subscriber in subscribers():
                subscriber.withdrawn(rows, now)
            ring_after_commit(alias_of(Event), Event)
    return len(rows)
