"""Acquiring: a worker asks for a slot of each limit before it runs the code of a row.

A row becomes due and is claimed as always. Only if its definition has limits, its worker looks which slots the row
holds, and asks for the others (``RowSlots.acquire``), in a fixed order. Each request is one transaction under the lock
of the limiter's row: the row joins the queue, and those whose turn it is are admitted (``admission``). If the row is
not among them, the same transaction lets it wait: its ``wake_at`` is NULL, so claims do not see it, however many such
rows there are. The transaction that admits it makes it due again.

A commit that lets the row wait, sleep, back off or end releases its slot, which is then *due*: a worker that performs
it looks at the queue. So a release locks no limiter, also where a project's transaction cancels a run.

* A worker dies: its row keeps the slot and becomes due when the lease ends.
* A row is changed from outside while it is in the queue: it is left out when its turn comes.
* A lost update, such as a row that was deleted by raw SQL: ``reconcile`` finds slots whose row is not executing.

A row that holds a slot always looks for it after its claim has committed, and a slot is taken from a row only under the
lock of that row, so both cannot miss each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction

from ...db.deadlocks import retry_on_deadlock
from ...db.inserts import insert_ignoring
from ...db.locks import locked
from ...db.writer import alias_of
from ...values.clock import Clock, later
from ...values.digests import digest
from ...values.limits import Concurrency, DeclaredLimit, LimitKey, RateLimit, Singleton, Throttle
from ..models import Limiter, Slot, SlotState, SlotTerm
from ..wakeable import Wakeable, at_text
from .admission import admit
from .owners import SlotOwner, find_owner
from .release import release_slots

TERMS = {
    Concurrency: SlotTerm.EXECUTION,
    Throttle: SlotTerm.START,
    Singleton: SlotTerm.LIFE,
    RateLimit: SlotTerm.PERIOD,
}
MAX_VALUE_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicant:
    """What asks for slots of its limits. ``row``: the row that the worker has leased for it.

    ``has_started``: its code has run before, so a conflict must not end it. ``let_wait``: writes that it waits to be
    admitted, or until its start. ``refuse``: writes that it ends, with the reason. Both are fenced, and are called in
    the transaction that decides so.
    """

    row: Wakeable
    name: str
    has_started: bool
    let_wait: Callable[[datetime | None], None]
    refuse: Callable[[str], None]


class RowSlots:
    """The slots of limits of one leased row."""

    def __init__(self, kind: str, pk: int) -> None:
        self.kind = kind
        self.pk = pk
        self._load()

    def _load(self) -> None:
        rows = Slot.objects.filter(row_kind=self.kind, row_pk=self.pk).exclude(state=SlotState.RELEASED)
        self.found = {slot.limiter.limit: slot for slot in rows.select_related("limiter")}

    def missing(self, limits: Sequence[DeclaredLimit], *, has_started: bool) -> list[DeclaredLimit]:
        """Return the limits of which the row must still acquire a slot before its code runs, in their order."""
        found = []
        for number, each in enumerate(limits):
            slot = self.found.get(each.name)
            is_held = slot is not None and slot.state == SlotState.HELD
            if is_held or (has_started and each.is_for_start):
                continue
            # What it was counted for may be forgotten while the row waits for the limits that follow.
            was_counted = isinstance(each.limit, RateLimit) and any(
                later.name in self.found for later in limits[number + 1 :]
            )
            if not was_counted:
                found.append(each)
        return found

    def acquire(
        self,
        applicant: Applicant,
        limits: Sequence[DeclaredLimit],
        key_of: Callable[[DeclaredLimit], LimitKey],
        clock: Clock,
    ) -> bool:
        """Ask for a slot of each of ``limits``. Return whether the row has them all; if not, it waits for its turn, or
        has ended. Raises ``LeaseLostError``."""
        return all(self._acquire(applicant, each, key_of(each), clock) for each in limits)

    def _acquire(self, applicant: Applicant, declared: DeclaredLimit, key: LimitKey, clock: Clock) -> bool:
        row, before = applicant.row, dict(applicant.row.__dict__)
        cancelled: set[int] = set()

        def ask() -> bool | list[int]:
            try:
                return self._ask(applicant, declared, key, clock(), cancelled)
            except Exception:
                # What was rolled back has changed these in memory.
                row.__dict__.clear()
                row.__dict__.update(before)
                self._load()
                raise

        while True:
            answer = retry_on_deadlock(alias_of(Slot), ask)
            if isinstance(answer, bool):
                return answer
            owner = find_owner(self.kind)
            assert owner is not None
            for pk in answer:
                reason = f"Superseded by {owner.model._meta.verbose_name} #{self.pk}: {declared}."
                owner.cancel(pk, reason, clock())
            cancelled.update(answer)

    def _ask(
        self,
        applicant: Applicant,
        declared: DeclaredLimit,
        key: LimitKey,
        now: datetime,
        cancelled: Collection[int],
    ) -> bool | list[int]:
        """Return whether the row has the slot; or the rows to cancel before it asks again. ``cancelled``: those that it
        has cancelled already."""
        owner = find_owner(self.kind)
        assert owner is not None
        limiter_key = digest("limiter", self.kind, applicant.name, declared.name, key.text)
        while True:
            with transaction.atomic(using=alias_of(Slot)):
                limiter = locked(Limiter.objects.filter(key=limiter_key)).first()
                if limiter is not None:
                    return self._decide(applicant, declared, limiter, owner, now, cancelled)
            missing = Limiter(
                row_kind=self.kind,
                name=applicant.name,
                limit=declared.name,
                value=key.shown[:MAX_VALUE_LENGTH],
                key=limiter_key,
                created_at=now,
            )
            insert_ignoring(Limiter, [missing])

    def _decide(
        self,
        applicant: Applicant,
        declared: DeclaredLimit,
        limiter: Limiter,
        owner: SlotOwner,
        now: datetime,
        cancelled: Collection[int],
    ) -> bool | list[int]:
        limit = declared.limit
        if isinstance(limit, RateLimit):
            return self._count(applicant, declared, limit, limiter, now)
        if isinstance(limit, Singleton) and limit.on_conflict != "queue" and not applicant.has_started:
            rivals = self._rivals(limiter, owner)
            if rivals and (limit.on_conflict == "skip" or max(rivals) > self.pk):
                rival = f"{owner.model._meta.verbose_name} #{rivals[-1]} has not ended"
                self._refuse(applicant, f"Skipped: {rival}, and {declared}.", now)
                return False
            if rest := [pk for pk in rivals if pk not in cancelled]:
                return rest
            # One that was cancelled and has not ended undoes its work first: the row waits for that.
        slot = self.found.get(declared.name)
        if slot is None or not Slot.objects.filter(pk=slot.pk, state=SlotState.QUEUED).exists():
            slot = self._insert(declared, limiter, SlotState.QUEUED, now)
        start = admit(limiter, declared, owner, now, mine=slot).starts.get(slot.pk)
        if start is not None:
            slot.state = SlotState.HELD
        if start is None or start > now:
            applicant.let_wait(start)
            return False
        return True

    def _count(
        self, applicant: Applicant, declared: DeclaredLimit, limit: RateLimit, limiter: Limiter, now: datetime
    ) -> bool:
        """Count one more start in the period, or refuse the row."""
        counted = Slot.objects.filter(limiter=limiter, term=SlotTerm.PERIOD)
        counted.filter(expires_at__lte=now).delete()
        before = list(counted.order_by("pk").values_list("expires_at", flat=True)[: limit.limit])
        if len(before) == limit.limit:
            again = "" if before[0] is None else f" The next one may start at {at_text(before[0])}."
            self._refuse(applicant, f"Skipped: {declared} is used up.{again}", now)
            return False
        self._insert(declared, limiter, SlotState.HELD, now, expires_at=later(now, limit.per))
        return True

    def _rivals(self, limiter: Limiter, owner: SlotOwner) -> list[int]:
        """Return the other rows that hold the slot or wait for it, and have not ended, in the order of their keys."""
        slots = Slot.objects.filter(limiter=limiter, state__in=[SlotState.HELD, SlotState.QUEUED])
        pks = [pk for pk in slots.values_list("row_pk", flat=True) if pk != self.pk]
        return sorted(owner.unfinished().filter(pk__in=pks).values_list("pk", flat=True)) if pks else []

    def _insert(
        self,
        declared: DeclaredLimit,
        limiter: Limiter,
        state: SlotState,
        now: datetime,
        expires_at: datetime | None = None,
    ) -> Slot:
        slot = Slot(
            limiter=limiter,
            row_kind=self.kind,
            row_pk=self.pk,
            state=state,
            term=TERMS[type(declared.limit)],
            created_at=now,
            expires_at=expires_at,
            unique_key=digest("slot", self.kind, self.pk, declared.name),
        )
        slot.save(force_insert=True, using=alias_of(Slot))
        self.found[declared.name] = slot
        return slot

    def _refuse(self, applicant: Applicant, reason: str, now: datetime) -> None:
        applicant.refuse(reason)
        self.release(now, has_ended=True)

    def release(self, now: datetime, *, has_started: bool = True, has_ended: bool = False) -> None:
        """Release what the row holds only while it executes, in the transaction that lets it wait or end; with
        ``has_started`` what it needed to start, with ``has_ended`` everything."""
        terms = {SlotTerm.EXECUTION, *([SlotTerm.LIFE] if has_ended else [])}
        released = [slot.pk for slot in self.found.values() if slot.term in terms]
        if released:
            release_slots(Slot.objects.filter(pk__in=released), now)
        if has_started or has_ended:
            started = [slot.pk for slot in self.found.values() if slot.term == SlotTerm.START]
            # A queued one may be what its limiter waits for; a held one counts for nothing any more.
            if started:
                Slot.objects.filter(pk__in=started).delete()
