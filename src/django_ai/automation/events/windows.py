"""Windows: events are collected and handed to one run or call together (``Debounce``, ``Batch``).

The transaction in which an event occurs only inserts a ``CollectedEvent`` for each definition with a window, so
occurrences never wait for each other. After its commit the row of the window (a run, an execution) is inserted, or its
end is moved (``move_windows``). This is repeated if the process dies first, like every notification. The row has a
unique key while its window is open, and is due at the end of the window.

The worker that claims the row *closes* the window: one transaction gives up the key, under the fence of the lease, and
then assigns the collected events to the row. An event that was committed before that belongs to it. A later one finds
no row with the key and opens the next window. So each event belongs to exactly one row, whenever a process dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Exists, Min, OuterRef, Q, QuerySet

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..queues.advance import advance
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..queues.periodic_tasks import SliceResult, TimeSlice
from ..queues.wakeable import Wakeable
from ..values.clock import later
from ..values.digests import digest
from ..values.windows import Batch, Window
from .entities import load_entities
from .models import CollectedEvent, Event

MAX_MOVE_ATTEMPTS = 5
WINDOWS_PER_QUERY = 500
"""Open windows that one query of the reconciliation reads."""


@dataclass(frozen=True, slots=True)
class WindowKind:
    """How the rows of one model have windows.

    ``key_column``: the nullable or replaceable unique column that has the key of an open window. ``open``: rows whose
    window is open. ``find``: returns the window that the definition of this name declares, if it still does.
    ``new_row``: returns the unsaved row of a window.
    """

    name: str
    model: type[Wakeable]
    key_column: str
    open: Q
    ended: Q
    find: Callable[[str], Window | None]
    new_row: Callable[[Event, str, str, datetime, datetime], Wakeable]
    closed_key: Callable[[Any], str | None]


_kinds: dict[str, WindowKind] = {}


def register_window_kind(kind: WindowKind) -> None:
    _kinds[kind.name] = kind


def window_key(kind: str, name: str, namespace: str, value: str) -> str:
    """Return the key of the window of one definition for events with this value of its key."""
    return digest("window", kind, name, namespace, value)


def collected(kind: str, name: str, window: str, event: Event, now: datetime) -> CollectedEvent:
    """Return the unsaved row that lets ``event`` wait in a window."""
    return CollectedEvent(
        kind=kind,
        name=name,
        window=window,
        event=event,
        position=event.position or 0,
        created_at=now,
        unique_key=digest("collected", kind, name, event.pk),
    )


def move_windows(events: Iterable[Event], now: datetime) -> None:
    """Insert the rows of the windows in which ``events`` wait, or move their ends. The events are committed."""
    waiting = CollectedEvent.objects.filter(event__in=[event.pk for event in events], target=None)
    for kind, name, window in waiting.values_list("kind", "name", "window").distinct().order_by("window"):
        move_window(kind, name, window, now)


def move_window(kind_name: str, name: str, key: str, now: datetime, *, only_missing: bool = False) -> None:
    """Insert the row of one window, or move its end. ``only_missing``: leave a row that is there as it is."""
    kind = _kinds.get(kind_name)
    window = kind.find(name) if kind is not None else None
    if kind is None or window is None:
        return  # code that no longer collects: the reconciliation of code that does finds the events
    model = kind.model
    rows = model._base_manager.using(alias_of(model)).filter(**{kind.key_column: key})
    for _ in range(MAX_MOVE_ATTEMPTS):
        first = _unassigned(key).order_by("position", "pk").select_related("event").first()
        if first is None:
            return  # closed meanwhile
        wake_at = _end_of(window, key, now)
        new = kind.new_row(first.event, name, key, wake_at, now)
        if not insert_ignoring(model, [new]):
            if only_missing:
                return
            if not revoke(rows.filter(kind.open, lease=None).exclude(wake_at=wake_at), wake_at=wake_at):
                ended = rows.filter(kind.ended).first()
                if ended is None:
                    return  # its end is right already, or its worker or an operator closes it
                # It was ended from outside. What waited for it has ended with it, and the next event opens another.
                rows.filter(pk=ended.pk).update(**{kind.key_column: kind.closed_key(ended)})
                continue
        if wake_at <= now:
            ring_after_commit(alias_of(model), model)
        return


def _unassigned(key: str) -> QuerySet[CollectedEvent, CollectedEvent]:
    return CollectedEvent.objects.filter(window=key, target=None)


def _end_of(window: Window, key: str, now: datetime) -> datetime:
    """Return when the window closes, as of ``now``, the moment of its latest event."""
    rows = _unassigned(key)
    if isinstance(window, Batch):
        if len(rows.order_by("position").values_list("pk")[: window.size]) >= window.size:
            return now
        return later(rows.aggregate(first=Min("created_at"))["first"] or now, window.timeout)
    end = later(now, window.period)
    if window.max_wait is None:
        return end
    return min(end, later(rows.aggregate(first=Min("created_at"))["first"] or now, window.max_wait))


def close(row: Wakeable, kind_name: str, name: str, now: datetime) -> None:
    """Close the window of ``row``, which this worker has leased: assign to it the events that are there.

    Fenced: raises ``LeaseLostError``. Idempotent, for a worker that has died after it.
    """
    kind = _kinds[kind_name]
    key, window = getattr(row, kind.key_column), kind.find(name)
    with transaction.atomic(using=alias_of(kind.model)):
        # First the key, under a lock: an event that is committed later finds no row, and opens the next window.
        advance(row, {kind.key_column: kind.closed_key(row), "losses": row.losses})
        rows = _unassigned(key)
        if isinstance(window, Batch):
            mine = list(rows.order_by("position", "pk").values_list("pk", flat=True)[: window.size])
            CollectedEvent.objects.filter(pk__in=mine).update(target=row.pk)
            move_window(kind_name, name, key, now)
        else:
            rows.update(target=row.pk)


def events_of(kind_name: str, pk: int) -> list[Event]:
    """Return the events of a row whose window is closed, in their order."""
    rows = CollectedEvent.objects.filter(kind=kind_name, target=pk).select_related("event").order_by("position", "pk")
    events = [row.event for row in rows]
    load_entities(events)
    return events


def discard(kind_name: str, key: str, pk: int) -> None:
    """Assign what waits in a window to its row, which has ended without handling it."""
    _unassigned(key).filter(kind=kind_name).update(target=pk)


def reopen_lost_windows(time_slice: TimeSlice) -> SliceResult:
    """Insert the rows of windows that have none, because they were deleted, or this code has come only now."""
    after = time_slice.position or ""
    while True:
        waiting = CollectedEvent.objects.filter(target=None, window__gt=after).order_by("window")
        page = list(waiting.values_list("window", "kind", "name").distinct()[:WINDOWS_PER_QUERY])
        for window, kind, name in page:
            move_window(kind, name, window, time_slice.now, only_missing=True)
        if len(page) < WINDOWS_PER_QUERY:
            return SliceResult()
        after = page[-1][0]
        if time_slice.is_over:
            return SliceResult(position=after)


def collected_by(kind_name: str, pk: int) -> QuerySet[CollectedEvent, Any]:
    """Return the keys of the events that were handed to a row."""
    return CollectedEvent.objects.filter(kind=kind_name, target=pk).values("event")


def collectors_of(kind_name: str, event_pk: int) -> QuerySet[CollectedEvent, Any]:
    """Return the keys of the rows to which an event was handed."""
    handed = CollectedEvent.objects.filter(kind=kind_name, event=event_pk, target__isnull=False)
    return handed.values("target")


def is_needed_by_target() -> Q:
    """Return the condition for collected events whose row has not ended."""
    needed = Q(pk__in=[])
    for kind in _kinds.values():
        unfinished = kind.model._base_manager.filter(~kind.ended, pk=OuterRef("target"))
        needed |= Q(Exists(unfinished), kind=kind.name)
    return needed


def needed_by_windows() -> Q:
    """Return the condition for events that a window has collected: they stay as long as that is recorded."""
    return Q(Exists(CollectedEvent.objects.filter(event=OuterRef("pk"))))
