"""Admission: whose turn it is at a limiter. All of it happens under the lock of the limiter's row.

A transaction that holds this lock waits for no other: rows that are locked by others are skipped and looked at again a
second later. So no deadlock can include a limiter, and a caller's transaction that cancels a run never waits for one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from django.db import transaction
from django.db.models import Q, QuerySet

from ...db.deadlocks import retry_on_deadlock
from ...db.inserts import insert_ignoring
from ...db.locks import locked, skipping_locked
from ...db.writer import alias_of
from ...values.clock import Clock
from ...values.digests import digest
from ...values.limits import Concurrency, DeclaredLimit, Throttle, next_start
from ..advance import advance
from ..lease import revoke
from ..models import Limiter, Slot, SlotState
from ..notifier import ring_after_commit
from ..parking import next_check
from .owners import SlotOwner, find_owner

HORIZON = timedelta(seconds=1)
"""A throttle gives rows their start as much as this ahead, so that it need not wake for each of them."""
RETRY_LOCKED = timedelta(seconds=1)
"""When a row that another transaction has locked is looked at again."""
RETRY_FAILED = timedelta(minutes=1)
"""When a queue is looked at again whose look has killed several workers."""
MAX_ADMITTED = 500
"""How many rows one transaction admits."""


@dataclass(slots=True)
class Admission:
    """The result of a look at a queue. ``starts``: when each admitted slot starts, by its key. ``look_again``: when the
    queue must be looked at again, if no release does so."""

    starts: dict[int, datetime] = field(default_factory=dict)
    look_again: datetime | None = None


def admit(
    limiter: Limiter, declared: DeclaredLimit | None, owner: SlotOwner, now: datetime, mine: Slot | None = None
) -> Admission:
    """Admit the rows whose turn it is, in the transaction that has locked ``limiter``.

    ``declared``: None if the code no longer has this limit; then all rows are admitted. ``mine``: the queued slot of
    the row that the caller has leased; the caller makes that row due.
    """
    result, skipped, is_locked = Admission(), set[int](), False
    free = _free_starts(limiter, declared, now)
    queue = Slot.objects.filter(limiter=limiter, state=SlotState.QUEUED).order_by("pk")
    wanted = len(free)
    # Without a lock on the slots of the limiter: a transaction that changes one from outside has locked its row.
    while wanted and (slots := list(queue.exclude(pk__in=skipped)[:wanted])):
        others = [slot.row_pk for slot in slots if mine is None or slot.pk != mine.pk]
        rows = _rows_in_queue(owner, others, now)
        rows.ready |= set() if mine is None else {mine.row_pk}
        admitted = [slot for slot in slots if slot.row_pk in rows.ready]
        skipped |= {slot.pk for slot in slots if slot.row_pk in rows.locked | rows.asking}
        is_locked = is_locked or bool(rows.locked)
        gone = [slot.pk for slot in slots if slot.row_pk not in rows.ready | rows.locked | rows.asking]
        starts = {slot.pk: free[len(result.starts) + number] for number, slot in enumerate(admitted)}
        result.starts |= starts
        if gone:
            Slot.objects.filter(pk__in=gone).delete()
        if declared is None:
            Slot.objects.filter(pk__in=list(starts)).delete()
        elif starts:
            Slot.objects.filter(pk__in=list(starts)).update(state=SlotState.HELD)
        due = {slot.row_pk: starts[slot.pk] for slot in admitted if mine is None or slot.pk != mine.pk}
        if due:
            owner.admit({pk: start for pk, start in due.items() if pk is not None})
        wanted = len(free) - len(result.starts) if len(slots) == wanted else 0
    if declared is not None and isinstance(declared.limit, Throttle):
        _store_pace(limiter, declared.limit, now, len(result.starts))
    number = len(result.starts)
    result.look_again = _next_look(limiter, declared, now, number, is_full=number == len(free))
    if is_locked:
        again = now + RETRY_LOCKED
        result.look_again = again if result.look_again is None else min(again, result.look_again)
    if result.look_again is not None:
        set_timer(limiter, result.look_again, now)
    return result


def _free_starts(limiter: Limiter, declared: DeclaredLimit | None, now: datetime) -> list[datetime]:
    """Return when rows may start that are admitted now."""
    if declared is None:
        return [now] * MAX_ADMITTED
    limit = declared.limit
    if isinstance(limit, Throttle):
        found: list[datetime] = []
        next_at = limiter.next_at
        while len(found) < MAX_ADMITTED:
            start, next_at = next_start(limit, now, next_at)
            if start > now + HORIZON:
                break
            found.append(start)
        return found
    size = limit.limit if isinstance(limit, Concurrency) else 1
    return [now] * min(size - holders(limiter, now).count(), MAX_ADMITTED)


def holders(limiter: Limiter, now: datetime) -> QuerySet[Slot, Slot]:
    """Return the slots that count as held: also released ones whose time has not come, because their code may still
    run."""
    slots = Slot.objects.filter(limiter=limiter, state__in=[SlotState.HELD, SlotState.RELEASED])
    return slots.filter(Q(state=SlotState.HELD) | Q(wake_at__gt=now, lease=None))


@dataclass(slots=True)
class RowsInQueue:
    """Which rows of a queue wait to be admitted and are locked now (``ready``) or by another transaction (``locked``),
    and which were made due from outside, so that they ask themselves (``asking``). The others wait no longer."""

    ready: set[int | None]
    locked: set[int | None] = field(default_factory=set)
    asking: set[int | None] = field(default_factory=set)


def _rows_in_queue(owner: SlotOwner, pks: Collection[int | None], now: datetime) -> RowsInQueue:
    if not pks:
        return RowsInQueue(set())
    rows = owner.waiting().filter(pk__in=pks)
    found = RowsInQueue(set(skipping_locked(rows).values_list("pk", flat=True)))
    if len(found.ready) < len(pks):
        found.locked = set(rows.exclude(pk__in=found.ready).values_list("pk", flat=True))
        rest = set(pks) - found.ready - found.locked
        found.asking = set(owner.executing(now).filter(pk__in=rest).values_list("pk", flat=True))
    return found


def _store_pace(limiter: Limiter, throttle: Throttle, now: datetime, number: int) -> None:
    for _ in range(number):
        _, limiter.next_at = next_start(throttle, now, limiter.next_at)
    if number:
        Limiter.objects.filter(pk=limiter.pk).update(next_at=limiter.next_at)


def _next_look(
    limiter: Limiter, declared: DeclaredLimit | None, now: datetime, number: int, *, is_full: bool
) -> datetime | None:
    """Return when the rest of the queue must be looked at, if that is not the release of a slot. ``number``: how many
    were admitted; ``is_full``: whether that is all for now."""
    is_throttle = declared is not None and isinstance(declared.limit, Throttle)
    if not (is_throttle and is_full) and number < MAX_ADMITTED:
        return None
    if not Slot.objects.filter(limiter=limiter, state=SlotState.QUEUED).exists():
        return None
    if declared is None or not isinstance(declared.limit, Throttle):
        return now
    start, _ = next_start(declared.limit, now, limiter.next_at)
    return max(now, start - HORIZON / 4)


def set_timer(limiter: Limiter, at: datetime, now: datetime) -> None:
    """Let a worker look at the queue of ``limiter`` at a time, and not at an earlier one."""
    key = digest("timer", limiter.pk)
    if not revoke(Slot.objects.filter(unique_key=key), wake_at=at):
        timer = Slot(
            limiter=limiter,
            row_kind=limiter.row_kind,
            state=SlotState.TIMER,
            wake_at=at,
            created_at=now,
            unique_key=key,
        )
        insert_ignoring(Slot, [timer])
    ring_after_commit(alias_of(Slot), Slot)


# -- due slots ---------------------------------------------------------------------------------------------------------


def perform_slots(slots: Sequence[Slot], clock: Clock) -> None:
    """Perform due slots: look at the queue of each of their limiters once."""
    by_limiter: dict[int, list[Slot]] = {}
    for slot in slots:
        by_limiter.setdefault(slot.limiter_id, []).append(slot)
    for pk, mine in sorted(by_limiter.items()):
        retry_on_deadlock(alias_of(Slot), partial(_look_at_queue, pk, mine, clock))


def _look_at_queue(limiter_pk: int, slots: Sequence[Slot], clock: Clock) -> None:
    keys, now = [slot.pk for slot in slots], clock()
    with transaction.atomic(using=alias_of(Slot)):
        limiter = locked(Limiter.objects.filter(pk=limiter_pk)).first()
        if limiter is None:
            return  # deleted, and its slots with it
        is_due = Q(pk__in=keys) | Q(wake_at__lte=now, lease=None)
        released = Slot.objects.filter(is_due, limiter=limiter, state=SlotState.RELEASED)
        # By their keys: on MariaDB a search that locks would wait for slots that others are releasing.
        Slot.objects.filter(pk__in=list(released.values_list("pk", flat=True))).delete()
        owner = find_owner(limiter.row_kind)
        declared = None if owner is None else owner.find(limiter.name)
        if owner is None or declared is None:
            again = _next_check(limiter, now)
        else:
            limit = next((each for each in declared if each.name == limiter.limit), None)
            again = admit(limiter, limit, owner, now).look_again
        if again is None:
            Slot.objects.filter(pk__in=keys, state=SlotState.TIMER).delete()
        if any(slot.state in (SlotState.QUEUED, SlotState.HELD) for slot in slots):
            queue = Slot.objects.filter(pk__in=keys, state__in=[SlotState.QUEUED, SlotState.HELD])
            queue.update(wake_at=None, lease=None)


def _next_check(limiter: Limiter, now: datetime) -> datetime | None:
    """Look at the queue later: this worker's code lacks the definition of the limit. Return when, or None if it is
    empty."""
    if not Slot.objects.filter(limiter=limiter, state=SlotState.QUEUED).exists():
        return None
    timer = Slot.objects.filter(limiter=limiter, state=SlotState.TIMER).first()
    again = next_check(now if timer is None else timer.created_at, now)
    set_timer(limiter, again, now)
    return again


def postpone(slot: Slot, reason: str, now: datetime, *, awaiting_deploy: bool = False) -> None:
    """Look at the queue later: a limiter is never parked, because no other row does its work. Fenced."""
    advance(slot, {"wake_at": now + RETRY_FAILED, "lease": None})
