"""Notification: after the commit, notify the subscribers that wait for milestones, then release the event rows.

The row keeps its milestones in ``pending_notifications`` until then. If the process dies first, the row becomes due
again and another worker notifies: subscribers must be idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db import connections, transaction

from ..db.locks import skipping_locked
from ..db.writer import alias_of
from ..queues.notifier import ring_after_commit
from ..values.clock import Clock
from .claim_lookup import count_events
from .models import Event, RoutingShape
from .subscribers import Notification, subscribers
from .timing import next_wake


def ring_if_due(wakes: Iterable[datetime | None], now: datetime) -> None:
    """Ring for events that are due again at once."""
    if any(wake_at is not None and wake_at <= now for wake_at in wakes):
        ring_after_commit(alias_of(Event), Event)


def notify_subscribers(news: Sequence[Notification], clock: Clock) -> None:
    """Tell those who wait, then let the rows go. What fired is committed: whoever begins to wait now sees it."""
    if not news:
        return
    now = clock()
    shapes = RoutingShape.of([each.event for each in news])
    count_events([each.event for each in news if each.milestone == ""], shapes)
    for listener in subscribers():
        listener.notify(news, shapes, now)
    by_wake: dict[datetime | None, list[Event]] = {}
    for event in {each.event.pk: each.event for each in news}.values():
        definition = event.definition
        event.pending_notifications = []
        by_wake.setdefault(next_wake(event, definition, now) if definition else None, []).append(event)
    for wake_at, group in by_wake.items():
        _release(group, wake_at)
    ring_if_due(by_wake, now)


def _release(events: Sequence[Event], wake_at: datetime | None) -> None:
    """Give back events that were told, in one statement, or one by one where somebody has locked some of them: he may
    be waiting for the others."""
    # Fenced on the lease alone: whoever changed a row since has cleared it.
    pks = [event.pk for event in events]
    rows = Event.objects.filter(pk__in=pks, lease=events[0].lease).exclude(pending_notifications=[])
    told: dict[str, Any] = {"pending_notifications": [], "wake_at": wake_at, "lease": None}
    if len(events) == 1 or not connections[alias_of(Event)].features.has_select_for_update:
        rows.update(**told)
        return
    with transaction.atomic(using=alias_of(Event)):
        free = list(skipping_locked(rows).order_by().values_list("pk", flat=True))
        rows.filter(pk__in=free).update(**told)
    for event in events:
        if event.pk not in free:
            _release([event], wake_at)
