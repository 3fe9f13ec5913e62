"""What maintenance may remove on this floor: finished executions, and events of entities that are gone.

The latest row of a living entity stays, however old: it is what keeps the event from occurring twice. So does what a
floor above still needs. An entity that raw SQL has deleted left no word of it, so its old events are asked for it.
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
from .definitions import entity_id_of
from .entities import is_installed
from .models import CallbackExecution, Event, EventClaim, EventStatus, ExecutionStatus, Snapshot
from .subscribers import subscribers


def prune_executions(turn: TimeSlice) -> SliceResult:
    """Remove what ended longer ago than ``RETENTION_EXECUTIONS``."""
    before = turn.now - conf().retention("EXECUTIONS")
    finished = [ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED]
    # A finished execution of a living event stays with it: its unique key is what says "done".
    rows = CallbackExecution.objects.filter(status__in=finished, finished_at__lt=before, event__active_key=None)
    return prune_in_batches(rows, "created_at", before, turn)


def prune_events(turn: TimeSlice) -> SliceResult:
    """Remove events that are over since longer than ``RETENTION_EVENTS``, and what they called."""
    before = turn.now - conf().retention("EVENTS")
    executed = min(before, turn.now - conf().retention("EXECUTIONS"))
    dead = (
        Event.objects.filter(active_key=None, wake_at=None, event_created_at__lt=before)
        .exclude(occurred_at__gte=before)
        .exclude(executions__status__in=[ExecutionStatus.PENDING, ExecutionStatus.PARKED])
        .exclude(executions__finished_at__gte=executed)
    )
    # A deletion writes its snapshot to the latest row only, and those before it read it there.
    history = Event.objects.filter(
        entity_type=OuterRef("entity_type"),
        entity_id=OuterRef("entity_id"),
        declared_as=OuterRef("declared_as"),
        pk__lt=OuterRef("pk"),
        snapshot__isnull=True,
    )
    dead = dead.exclude(Exists(history), snapshot__isnull=False)
    for listener in subscribers():
        for needed in listener.still_needs():
            dead = dead.exclude(needed)
    return prune_in_batches(dead, "event_created_at", before, turn)


def prune_snapshots(turn: TimeSlice) -> SliceResult:
    """Remove the snapshots of deleted entities whose last event has gone."""
    before = turn.now - conf().retention("EVENTS")
    needed = Event.objects.filter(snapshot=OuterRef("pk"))
    return prune_in_batches(Snapshot.objects.filter(~Exists(needed), taken_at__lt=before), "taken_at", before, turn)


ASKED = 500
"""Keys of entities in one query."""


def release_orphans(turn: TimeSlice) -> SliceResult:
    """Let go of events whose entity was deleted past Django (raw SQL, a cascade of the database), as its deletion would
    have: they are removed then like those of any other entity that is gone. Only events are asked that are old
    enough."""
    before = turn.now - conf().retention("EVENTS")
    after, released = turn.position or 0, 0
    resting = Q(active_key__isnull=False, wake_at=None, lease=None, event_created_at__lt=before)
    while True:
        window = list(
            Event.objects.filter(pk__gt=after).order_by("pk").values_list("pk", "event_created_at")[:WINDOW_KEYS]
        )
        if not any(moment < before for _, moment in window):
            return SliceResult(released)
        events = Event.objects.filter(resting, pk__gt=after, pk__lte=window[-1][0])
        by_type: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for label, pk, entity_id in events.values_list("entity_type", "pk", "entity_id"):
            by_type[label].append((pk, entity_id))
        for label, found in by_type.items():
            for start in range(0, len(found), ASKED):
                released += _release(label, found[start : start + ASKED], resting)
        after = window[-1][0]
        if turn.is_over:
            return SliceResult(released, after)


def _release(label: str, found: list[tuple[int, str]], resting: Q) -> int:
    if not is_installed(label):
        return 0  # its model may come back
    model = apps.get_model(label)
    gone = _missing(model, {entity_id for _, entity_id in found})
    pks = [pk for pk, entity_id in found if entity_id in gone]
    if not pks:
        return 0
    with transaction.atomic(using=alias_of(Event)):
        # Whoever saves such an entity anew either has its row by now, or finds the key free.
        rows = list(locked(Event.objects.filter(resting, pk__in=pks)).values_list("pk", "entity_id"))
        gone = _missing(model, {entity_id for _, entity_id in rows})
        pks = [pk for pk, entity_id in rows if entity_id in gone]
        was_pending = Q(status__in=[EventStatus.PENDING, EventStatus.PARKED], occurred_at=None)
        status = Case(When(was_pending, then=Value(EventStatus.CANCELLED.value)), default=F("status"))
        return revoke(Event.objects.filter(pk__in=pks), active_key=None, status=status) if pks else 0


def _missing(model: type[models.Model], entity_ids: set[str]) -> set[str]:
    """Return which of these entities are not in their table, whatever the model's managers hide."""
    keys = {}
    for entity_id in entity_ids:
        with suppress(ValidationError):  # of a key that was of another type: that entity cannot be asked for
            keys[model._meta.pk.to_python(entity_id)] = entity_id
    there = models.QuerySet[Any, Any](model, using=alias_of(model)).filter(pk__in=list(keys)).order_by()
    return set(keys.values()) - {entity_id_of(model, pk) for pk in there.values_list("pk", flat=True)}


def prune_claims(turn: TimeSlice) -> SliceResult:
    """Remove claims that ended longer ago than ``RETENTION``, or were held before and whose run has ended."""
    before = turn.now - conf().RETENTION
    over = Q(expires_at__lt=before)
    for kind in owner_kinds():
        has_ended = ~Q(owner_id__in=unfinished_owners(kind).values("pk"))
        over |= Q(owner_kind=kind, held_at__lt=before) & (has_ended | Q(events_left=0))
    return prune_in_batches(EventClaim.objects.filter(over), "held_at", before, turn)
