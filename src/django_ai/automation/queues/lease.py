"""Leases: renew them, release them, and revoke them from outside.

``claim`` takes leases and ``advance`` writes under them. ``release`` gives a row back without any progress. ``renew``
moves the end of a lease; the heartbeat calls it. ``revoke`` is for everything that does not hold the lease: it changes
rows and clears their lease in the same write.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeVar

from django.db import connections, models, transaction
from django.db.models import F, QuerySet

from ..conf import conf
from ..db.locks import skipping_locked
from ..db.writer import alias_of
from .wakeable import Wakeable

M = TypeVar("M", bound=models.Model)


def release(row: Wakeable, wake_at: datetime, **changes: Any) -> bool:
    """Release the lease of a row, without any progress; the row is due at ``wake_at``. Return whether the lease was
    still held.

    Fenced on (``lease``, ``seq``): a release after a commit whose answer was lost changes nothing.
    """
    model = type(row)
    return bool(
        model._base_manager.using(alias_of(model))
        .filter(pk=row.pk, lease=row.lease, seq=row.seq)
        .update(lease=None, wake_at=wake_at, **changes)
    )


def release_unless_locked(row: Wakeable, wake_at: datetime) -> bool:
    """Release a row like ``release``, but without waiting for a lock. Return False if the row is locked."""
    model = type(row)
    mine = model._base_manager.using(alias_of(model)).filter(pk=row.pk)
    with transaction.atomic(using=mine.db):
        if skipping_locked(mine).values_list("pk").first() is None:
            return False
        release(row, wake_at)
        return True


def revoke(rows: QuerySet[M], **changes: Any) -> int:
    """Change rows from outside: write ``changes``, clear every lease and raise ``seq``, in one statement.

    If a worker holds one of the rows, its next fenced write is refused, and nothing of its work is kept.
    """
    return rows.update(**{"lease": None, "losses": 0, "seq": F("seq") + 1, **changes})


def renew(rows: Sequence[Wakeable], leases: Collection[str], now: datetime) -> None:
    """Move the end of ``leases`` on ``rows``, which are of one model. Fenced on the tokens, each of which one thread of
    this process holds. ``seq`` stays, so that the worker's own writes still match.

    The tokens are an argument, because a worker may clear its token on the rows at this moment. A row that is locked is
    skipped until the next heartbeat: the running step itself may hold the lock, or a transaction that waits for others.
    """
    model = type(rows[0])
    mine = model._base_manager.using(alias_of(model)).filter(pk__in=[row.pk for row in rows], lease__in=leases)
    if not connections[mine.db].features.has_select_for_update:
        mine.update(wake_at=now + conf().LEASE)
        return
    with transaction.atomic(using=mine.db):
        mine.filter(pk__in=list(skipping_locked(mine).values_list("pk", flat=True))).update(wake_at=now + conf().LEASE)
