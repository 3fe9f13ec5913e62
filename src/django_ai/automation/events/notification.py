"""Notification: after the commit, notify the subscribers that wait for milestones, then release the event rows.

The row keeps its milestones in ``pending_notifications`` until then. If the process dies first, the row becomes due
again and another worker notifies: subscribers must be idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db import connections, transaction

from ..db.durability import not_durable_if
from ..db.locks import skipping_locked
from ..db.prepared import prepared_cursor
from ..db.writer import alias_of
from ..queues.notifier import ring_after_commit
from ..values.clock import Clock
from .claim_lookup import count_events
from .models import Event, RoutingShape
from .subscribers import Notification, subscribers
from .subscriptions import subscriptions
from .timing import next_wake
from .windows import move_windows


def ring_if_due(wake_times: Iterable[datetime | None], now: datetime) -> None:
    """Ring the doorbell if an event is due again at once."""
    if any(wake_at is not None and wake_at <= now for wake_at in wake_times):
        ring_after_commit(alias_of(Event), Event)


def notify_subscribers(notifications: Sequence[Notification], clock: Clock) -> None:
    """Notify the subscribers of committed milestones, then release the rows. A wait that begins now sees the event."""
    if not notifications:
        return
    now = clock()
    shapes = RoutingShape.of([each.event for each in notifications])
    count_events([each.event for each in notifications if each.milestone == ""], shapes)
    for subscriber in subscribers():
        subscriber.notify(notifications, shapes, now)
    if subscriptions.has_windows:
        move_windows([each.event for each in notifications if each.milestone == ""], now)
    by_wake: dict[datetime | None, list[Event]] = {}
    for event in {each.event.pk: each.event for each in notifications}.values():
        definition = event.definition
        event.pending_notifications = []
        by_wake.setdefault(next_wake(event, definition, now) if definition else None, []).append(event)
    for wake_at, group in by_wake.items():
        _release(group, wake_at)
    ring_if_due(by_wake, now)


def _release(events: Sequence[Event], wake_at: datetime | None) -> None:
    """Release the events after their notification: the unlocked ones in one statement, the others one by one.

    A transaction that has locked some of them may be waiting for the others, so no lock is held while waiting.
    """
    # Fenced on the lease alone: every change from outside clears it.
    if len(events) == 1:
        _release_one(events[0], wake_at)
        return
    pks = [event.pk for event in events]
    rows = Event.objects.filter(pk__in=pks, lease=events[0].lease).exclude(pending_notifications=[])
    released: dict[str, Any] = {"pending_notifications": [], "wake_at": wake_at, "lease": None}
    if not connections[alias_of(Event)].features.has_select_for_update:
        rows.update(**released)
        return
    with transaction.atomic(using=alias_of(Event)):
        free = list(skipping_locked(rows).order_by().values_list("pk", flat=True))
        rows.filter(pk__in=free).update(**released)
    for event in events:
        if event.pk not in free:
            _release([event], wake_at)


def _release_one(event: Event, wake_at: datetime | None) -> None:
    connection = connections[alias_of(Event)]
    moment = connection.ops.adapt_datetimefield_value(wake_at)
    # The commit need not wait for the disk: if a crash of the server loses it, the subscribers are notified again.
    sql = _release_sql(connection.vendor, not_durable_if(connection))
    with prepared_cursor(connection) as cursor:
        cursor.execute(sql, [moment, event.pk, event.lease])


@lru_cache(maxsize=8)
def _release_sql(vendor: str, condition: str) -> str:
    quote = connections[alias_of(Event)].ops.quote_name
    return (
        f"UPDATE {quote(Event._meta.db_table)} SET pending_notifications = '[]', wake_at = %s, lease = NULL "
        f"WHERE id = %s AND lease = %s AND pending_notifications <> '[]'{condition}"
    )
