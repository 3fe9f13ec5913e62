"""Retention: delete finished callback executions, events of deleted entities, and ended claims, after their time.

The latest row of a living entity stays, however old: it keeps the event from occurring twice. An event that was emitted
without an entity is deleted like history, and its key may then be used again. Rows that a higher layer still needs
stay, too. Raw SQL deletes an entity without a signal, so ``release_orphans`` checks old events for it.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When

from ..conf import conf
from ..db.locks import locked
from ..db.writer import alias_of
from ..queues.lease import revoke
from ..queues.periodic_tasks import SliceResult, TimeSlice
from ..queues.pruning import WINDOW_KEYS, prune_in_batches
from .claim_owners import owner_kinds, unfinished_owners
from .entities import is_installed
from .entity_ids import entity_id_of
from .models import (
    CallbackExecution,
    CapturedWrite,
    CapturedWriteStatus,
    CollectedEvent,
    Event,
    EventClaim,
    EventStatus,
    ExecutionStatus,
    Snapshot,
    has_final_date,
)
from .subscribers import subscribers
from .windows import is_needed_by_target, needed_by_windows


def prune_executions(time_slice: TimeSlice) -> SliceResult:
    """Delete executions that finished longer ago than ``RETENTION_EXECUTIONS``."""
    before = time_slice.now - conf().retention("EXECUTIONS")
    finished = [ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED]
    # A finished execution of a living event stays: its unique key keeps the callback from running again.
    rows = CallbackExecution.objects.filter(has_final_date("event__"), status__in=finished, finished_at__lt=before)
    return prune_in_batches(rows, "created_at", before, time_slice)


def prune_events(time_slice: TimeSlice) -> SliceResult:
    """Delete events that ended longer ago than ``RETENTION_EVENTS``, with their executions."""
    before = time_slice.now - conf().retention("EVENTS")
    executed = min(before, time_slice.now - conf().retention("EXECUTIONS"))
    expired = (
        Event.objects.filter(has_final_date(), wake_at=None, event_created_at__lt=before)
        .exclude(entity_type="", status__in=[EventStatus.PENDING, EventStatus.PARKED])
        .exclude(occurred_at__gte=before)
        .exclude(executions__status__in=[ExecutionStatus.PENDING, ExecutionStatus.PARKED])
        .exclude(executions__finished_at__gte=executed)
    )
    # Rows that a deletion has not given a snapshot of their own read it from a later row.
    history = Event.objects.filter(
        entity_type=OuterRef("entity_type"),
        entity_id=OuterRef("entity_id"),
        declared_as=OuterRef("declared_as"),
        pk__lt=OuterRef("pk"),
        snapshot__isnull=True,
    )
    expired = expired.exclude(Exists(history), snapshot__isnull=False)
    expired = expired.exclude(needed_by_windows())
    for subscriber in subscribers():
        for needed in subscriber.needed_events():
            expired = expired.exclude(needed)
    return prune_in_batches(expired, "event_created_at", before, time_slice)


def prune_collected(time_slice: TimeSlice) -> SliceResult:
    """Delete the record of which events were handed to a run or call, after ``RETENTION_EXECUTIONS``, once that has
    ended."""
    before = time_slice.now - conf().retention("EXECUTIONS")
    handed = CollectedEvent.objects.filter(target__isnull=False, created_at__lt=before)
    return prune_in_batches(handed.exclude(is_needed_by_target()), "created_at", before, time_slice)


def prune_snapshots(time_slice: TimeSlice) -> SliceResult:
    """Delete the snapshots whose last event was deleted."""
    before = time_slice.now - conf().retention("EVENTS")
    needed = Event.objects.filter(snapshot=OuterRef("pk"))
    return prune_in_batches(
        Snapshot.objects.filter(~Exists(needed), taken_at__lt=before), "taken_at", before, time_slice
    )


ENTITY_KEYS_PER_QUERY = 500
"""Primary keys of entities that one query compares."""


def release_orphans(time_slice: TimeSlice) -> SliceResult:
    """Release the events of entities that were deleted without signals (raw SQL, a database cascade).

    They lose their key as in any deletion, so that ``prune_events`` can delete them. Only events older than the
    retention time are checked.
    """
    before = time_slice.now - conf().retention("EVENTS")
    after, released = time_slice.position or 0, 0
    is_idle = Q(active_key__isnull=False, entity_type__gt="", wake_at=None, lease=None, event_created_at__lt=before)
    while True:
        window = list(
            Event.objects.filter(pk__gt=after).order_by("pk").values_list("pk", "event_created_at")[:WINDOW_KEYS]
        )
        if not any(created_at < before for _, created_at in window):
            return SliceResult(released)
        events = Event.objects.filter(is_idle, pk__gt=after, pk__lte=window[-1][0])
        by_type: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for label, pk, entity_id in events.values_list("entity_type", "pk", "entity_id"):
            by_type[label].append((pk, entity_id))
        for label, found in by_type.items():
            for start in range(0, len(found), ENTITY_KEYS_PER_QUERY):
                released += _release(label, found[start : start + ENTITY_KEYS_PER_QUERY], is_idle)
        after = window[-1][0]
        if time_slice.is_over:
            return SliceResult(released, after)


def _release(label: str, found: list[tuple[int, str]], is_idle: Q) -> int:
    if not is_installed(label):
        return 0  # the model may be restored
    model = apps.get_model(label)
    missing = _missing(model, {entity_id for _, entity_id in found})
    pks = [pk for pk, entity_id in found if entity_id in missing]
    if not pks:
        return 0
    with transaction.atomic(using=alias_of(Event)):
        # Checked again under the lock: an entity saved meanwhile has its row, or finds the key free.
        rows = list(locked(Event.objects.filter(is_idle, pk__in=pks)).values_list("pk", "entity_id"))
        missing = _missing(model, {entity_id for _, entity_id in rows})
        pks = [pk for pk, entity_id in rows if entity_id in missing]
        was_pending = Q(status__in=[EventStatus.PENDING, EventStatus.PARKED], occurred_at=None)
        status = Case(When(was_pending, then=Value(EventStatus.CANCELLED.value)), default=F("status"))
        return revoke(Event.objects.filter(pk__in=pks), active_key=None, status=status) if pks else 0


def _missing(model: type[models.Model], entity_ids: set[str]) -> set[str]:
    """Return which of these entities are not in their table. Managers of the model may filter, so none is used."""
    keys = {}
    for entity_id in entity_ids:
        with suppress(ValidationError):  # the type of the key has changed: that entity cannot be looked up
            keys[model._meta.pk.to_python(entity_id)] = entity_id
    present = models.QuerySet[Any, Any](model, using=alias_of(model)).filter(pk__in=list(keys)).order_by()
    return set(keys.values()) - {entity_id_of(model, pk) for pk in present.values_list("pk", flat=True)}


def prune_captured_writes(time_slice: TimeSlice) -> SliceResult:
    """Delete captured writes that have been parked for ``RETENTION_EVENTS``: the code captures their table no longer,
    or they failed."""
    before = time_slice.now - conf().retention("EVENTS")
    parked = CapturedWrite.objects.filter(status=CapturedWriteStatus.PARKED, parked_at__lt=before)
    return prune_in_batches(parked, "written_at", before, time_slice)


def prune_claims(time_slice: TimeSlice) -> SliceResult:
    """Delete claims that ended longer ago than ``RETENTION``, or that were held before then by a run that has ended."""
    before = time_slice.now - conf().RETENTION
    ended = Q(expires_at__lt=before)
    for kind in owner_kinds():
        has_ended = ~Q(owner_id__in=unfinished_owners(kind).values("pk"))
        ended |= Q(owner_kind=kind, held_at__lt=before) & (has_ended | Q(events_left=0))
    return prune_in_batches(EventClaim.objects.filter(ended), "held_at", before, time_slice)
