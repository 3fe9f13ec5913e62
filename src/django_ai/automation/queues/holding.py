"""Holding: a claimed row that is paused is put aside until the pause ends.

Both sides commit first and look second. A worker that holds rows commits that (fenced), then looks whether their pauses
still exist, and makes the rows due again if one has ended. A process that ends a pause deletes it, makes the held rows
due, and does so once more after the commit (``pausing``). The one that commits last sees the other. If that process
dies in between, the workers that notice the end of the pause do the same (``pauses.take_ended``), and
``reconcile_pauses`` finds held rows without a pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, OuterRef, Q, Subquery

from ..db.locks import locked
from ..db.writer import alias_of
from .advance import advance_many
from .lease import revoke
from .models import HeldRow, Pause
from .parking import PARKED, next_check
from .pausable import PausableWakeable
from .pauses import Pauses
from .registry import wakeables

ROWS_PER_STATEMENT = 500


def paused_among(rows: Sequence[Any], pauses: Pauses) -> dict[int, str]:
    """Return those of the claimed ``rows``, of one model, that are paused: the target of the pause, by primary key."""
    found: dict[int, str] = {}
    if not rows or not isinstance(rows[0], PausableWakeable):
        return found
    single: set[str] = set()
    if pauses.has_rows:
        targets = [row.own_target for row in rows]
        single = set(Pause.objects.filter(target__in=targets).values_list("target", flat=True))
    for row in rows:
        if row.own_target in single:
            found[row.pk] = row.own_target
        elif row.named_target in pauses.targets:
            found[row.pk] = row.named_target
    return found


def hold(rows: Sequence[Any], targets: dict[int, str], now: datetime) -> None:
    """Hold leased ``rows``, of one model, until the pauses of ``targets`` end. Rows whose lease was lost are skipped.

    A row that is parked until its code is deployed keeps a time at which it is checked, because only that unparks it.
    """
    changes = []
    for row in rows:
        is_parked = getattr(row, "status", "") == PARKED
        wake_at = next_check(row.parked_at or now, now) if is_parked else None
        # It was not performed, so the losses that it had stay.
        changes.append((row, {"wake_at": wake_at, "lease": None, "losses": row.losses}))
    kind = rows[0].kind
    with transaction.atomic(using=alias_of(HeldRow)):
        kept = advance_many(changes)
        held = [row for row in rows if row.pk in kept and row.wake_at is None]
        HeldRow.objects.filter(kind=kind, row_pk__in=[row.pk for row in held]).delete()
        HeldRow.objects.bulk_create(
            HeldRow(kind=kind, row_pk=row.pk, target=targets[row.pk], due_at=now) for row in held
        )
        if held:
            type(held[0]).give_back([row.pk for row in held], now)
    named = {targets[row.pk] for row in held}
    for ended in named - set(Pause.objects.filter(target__in=named).values_list("target", flat=True)):
        release_held(ended)


def release_held(target: str, limit: int | None = None) -> int:
    """Make the rows due that are held for ``target``, in the order in which they were held; return how many. Commits
    after each ``ROWS_PER_STATEMENT``. ``limit``: release no more than about so many.

    A row that was woken, cancelled or resumed meanwhile is left as it is.
    """
    released = 0
    models = {model.kind: model for model in wakeables() if issubclass(model, PausableWakeable)}
    while limit is None or released < limit:
        with transaction.atomic(using=alias_of(HeldRow)):
            batch = list(HeldRow.objects.filter(target=target).order_by("pk")[:ROWS_PER_STATEMENT])
            if not batch:
                break
            for kind, model in models.items():
                if pks := [held.row_pk for held in batch if held.kind == kind]:
                    due_at = HeldRow.objects.filter(kind=kind, row_pk=OuterRef("pk")).values("due_at")[:1]
                    rows = model._base_manager.using(alias_of(model)).filter(
                        Q(status__in=model.performable), pk__in=pks, wake_at=None, lease=None
                    )
                    # Locked in one order: another process may release the same rows.
                    mine = list(locked(rows.order_by("pk")).values_list("pk", flat=True))
                    revoke(rows.filter(pk__in=mine), wake_at=Subquery(due_at), losses=F("losses"))
            HeldRow.objects.filter(pk__in=[held.pk for held in batch]).delete()
            released += len(batch)
    return released
