"""Reconciliation and pruning of limits.

Every commit that lets a row wait or end releases its slots. What happens behind the engine's back does not: a row that
is deleted or changed by raw SQL, a release of the code that knows no limits. So maintenance releases slots of rows that
are not executing, and looks at each queue: a limit that a deployment has raised takes effect then.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q

from ...db.locks import skipping_locked
from ...db.writer import alias_of
from ..models import Limiter, Slot, SlotState, SlotTerm
from ..periodic_tasks import SliceResult, TimeSlice
from ..pruning import prune_in_batches
from .admission import set_timer
from .owners import SlotOwner, find_owner
from .release import release_slots

SLOTS_PER_CHUNK = 500
MIN_AGE = timedelta(minutes=1)
"""Younger slots are left alone: their row is being claimed."""
LIMITER_AGE = timedelta(hours=1)
"""A limiter that is older and has no slots is removed. It is inserted again when it is needed."""


def reconcile_limits(time_slice: TimeSlice) -> SliceResult:
    """Release slots whose rows are not executing, then look at all queues; count the released."""
    position = time_slice.position or {"slot": 0, "limiter": 0}
    done = 0
    while position["slot"] is not None:
        held = Slot.objects.filter(
            pk__gt=position["slot"], state=SlotState.HELD, created_at__lt=time_slice.now - MIN_AGE
        )
        slots = list(held.exclude(term=SlotTerm.PERIOD).order_by("pk")[:SLOTS_PER_CHUNK])
        for kind in {slot.row_kind for slot in slots}:
            done += _release_stale([slot for slot in slots if slot.row_kind == kind], find_owner(kind), time_slice.now)
        position["slot"] = slots[-1].pk if len(slots) == SLOTS_PER_CHUNK else None
        if time_slice.is_over:
            return SliceResult(done, position)
    while True:
        queued = Exists(Slot.objects.filter(limiter=OuterRef("pk"), state=SlotState.QUEUED))
        limiters = list(Limiter.objects.filter(queued, pk__gt=position["limiter"]).order_by("pk")[:SLOTS_PER_CHUNK])
        for limiter in limiters:
            set_timer(limiter, time_slice.now, time_slice.now)
        if len(limiters) < SLOTS_PER_CHUNK:
            return SliceResult(done)
        position["limiter"] = limiters[-1].pk
        if time_slice.is_over:
            return SliceResult(done, position)


def _release_stale(slots: Collection[Slot], owner: SlotOwner | None, now: datetime) -> int:
    if owner is None or not (stale := _stale(slots, owner, now)):
        return 0
    pks = [slot.row_pk for slot in stale]
    every = owner.model._base_manager.using(alias_of(owner.model)).filter(pk__in=pks)
    with transaction.atomic(using=alias_of(Slot)):
        # Locked and read again: a worker claims a row first and then looks for its slots.
        mine = set(skipping_locked(every).values_list("pk", flat=True))
        busy = set(every.exclude(pk__in=mine).values_list("pk", flat=True))
        still = _stale([slot for slot in stale if slot.row_pk not in busy], owner, now)
        return release_slots(Slot.objects.filter(pk__in=[slot.pk for slot in still], state=SlotState.HELD), now)


def _stale(slots: Collection[Slot], owner: SlotOwner, now: datetime) -> list[Slot]:
    """Return which held slots their rows do not need any more."""
    pks = [slot.row_pk for slot in slots]
    alive = _among(owner.unfinished(), pks)
    executing = _among(owner.executing(now), pks)
    queued = Slot.objects.filter(row_kind=owner.kind, state=SlotState.QUEUED, row_pk__in=pks)
    waiting = _among(owner.waiting(), set(queued.values_list("row_pk", flat=True)))
    needed = {
        SlotTerm.EXECUTION: executing | waiting,  # one that waits for a second limit keeps the slot of the first
        SlotTerm.START: alive,
        SlotTerm.LIFE: alive,
    }
    return [slot for slot in slots if slot.row_pk not in needed[SlotTerm(slot.term)]]


def _among(rows: Any, pks: Collection[int | None]) -> set[int | None]:
    return set(rows.filter(pk__in=pks).values_list("pk", flat=True)) if pks else set()


def prune_counted(time_slice: TimeSlice) -> SliceResult:
    """Delete what rate limits counted in periods that are over."""
    counted = Slot.objects.filter(expires_at__lt=time_slice.now)
    return prune_in_batches(counted, "created_at", time_slice.now, time_slice)


def prune_limiters(time_slice: TimeSlice) -> SliceResult:
    """Delete limiters that have no slots."""
    after, done = time_slice.position or 0, 0
    unused = Limiter.objects.filter(created_at__lt=time_slice.now - LIMITER_AGE).filter(
        Q(next_at=None) | Q(next_at__lt=time_slice.now), ~Exists(Slot.objects.filter(limiter=OuterRef("pk")))
    )
    while True:
        pks = list(unused.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:SLOTS_PER_CHUNK])
        with transaction.atomic(using=alias_of(Limiter)):
            # Locked and read again: an asking row inserts its slot under this lock.
            mine = set(skipping_locked(Limiter.objects.filter(pk__in=pks)).values_list("pk", flat=True))
            used = set(Slot.objects.filter(limiter__in=mine).values_list("limiter", flat=True))
            done += Limiter.objects.filter(pk__in=mine - used).delete()[0]
        if len(pks) < SLOTS_PER_CHUNK:
            return SliceResult(done)
        after = pks[-1]
        if time_slice.is_over:
            return SliceResult(done, position=after)
