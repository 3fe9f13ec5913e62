"""Releasing slots of limits: by the commit of a worker, and from outside. Neither locks a limiter."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from django.db.models import Q, QuerySet

from ...db.writer import alias_of
from ..lease import revoke
from ..models import Slot, SlotState, SlotTerm
from ..notifier import ring_after_commit
from .owners import find_owner

ALL_BUT_COUNTED = (SlotTerm.EXECUTION, SlotTerm.START, SlotTerm.LIFE)


def release_slots(slots: QuerySet[Slot, Slot], at: datetime) -> int:
    """Release ``slots``, which become due at ``at``; return how many."""
    kept = slots.exclude(state=SlotState.RELEASED)
    count = revoke(kept, state=SlotState.RELEASED, unique_key=None, wake_at=at)
    if count:
        ring_after_commit(alias_of(Slot), Slot)
    return count


def release_from_outside(
    kind: str,
    rows: Collection[int],
    now: datetime,
    *,
    leased_until: datetime | None = None,
    terms: Collection[SlotTerm] = ALL_BUT_COUNTED,
) -> None:
    """Release what rows hold or wait for, in the transaction that ends them or lets them wait.

    ``rows``: their keys; the transaction has locked them. ``leased_until``: the end of the lease of the worker that was
    executing them. No other row gets their place before that, or until the worker has left it (``left``): the code is
    still running.
    """
    if rows:
        slots = Slot.objects.filter(row_kind=kind, row_pk__in=rows, term__in=terms)
        release_slots(slots, now if leased_until is None else max(now, leased_until))


def release_but_life(kind: str, rows: Collection[int], now: datetime, *, leased_until: datetime | None = None) -> None:
    """Release what rows hold or wait for like ``release_from_outside``, except what they hold until they end: they have
    failed or were cancelled, and undo their work first. They ask again for what they need to execute."""
    terms = (SlotTerm.EXECUTION, SlotTerm.START)
    release_from_outside(kind, rows, now, leased_until=leased_until, terms=terms)
    release_slots(Slot.objects.filter(row_kind=kind, row_pk__in=rows, term=SlotTerm.LIFE, state=SlotState.QUEUED), now)


def give_back(kind: str, rows: Collection[int], now: datetime) -> None:
    """Release the slots that rows do not use while they are paused, in the transaction that holds them."""
    release_from_outside(kind, rows, now, terms=(SlotTerm.EXECUTION, SlotTerm.START))


def has_asked(kind: str, pk: int) -> bool:
    """Return whether a row waits for, or holds, what its limits allow."""
    return Slot.objects.filter(row_kind=kind, row_pk=pk).exclude(state=SlotState.RELEASED).exists()


def awaits_turn(kind: str, pk: int) -> bool:
    """Return whether a row that does not execute waits for its turn, or for its start, because of its limits."""
    asked = Slot.objects.filter(row_kind=kind, row_pk=pk).exclude(state=SlotState.RELEASED)
    return asked.filter(Q(state=SlotState.QUEUED) | Q(term__in=[SlotTerm.EXECUTION, SlotTerm.START])).exists()


def left(kind: str, pk: int, now: datetime) -> None:
    """Give away what a row held that was cancelled while this worker executed it: its code has ended now.

    Called when a commit was refused. If another worker has the row by now, the row keeps its slots.
    """
    theirs = Slot.objects.filter(row_kind=kind, row_pk=pk)
    if revoke(theirs.filter(state=SlotState.RELEASED, wake_at__gt=now, lease=None), wake_at=now):
        ring_after_commit(alias_of(Slot), Slot)
    owner = find_owner(kind)
    if owner is not None and not owner.unfinished().filter(pk=pk).exists():
        release_slots(theirs.filter(term__in=ALL_BUT_COUNTED), now)  # acquired after the row was cancelled
