"""What each worker process has leased now, for the pages of operators."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ..conf import conf
from ..db.writer import alias_of
from .registry import wakeables
from .wakeable import Wakeable

MAX_LEASED = 1000
"""How many leased rows of each kind are read."""


def leased_rows(now: datetime, kinds: Iterable[type[Wakeable]] | None = None) -> dict[str, list[Any]]:
    """Return what each process has leased, by its host and process id: one query for each kind of row.

    A lease is renewed every few seconds, so only the rows of the next seconds are read, in the wake index. Leases that
    have run out are left out: their rows are due.
    """
    found: dict[str, list[Any]] = {}
    for model in wakeables() if kinds is None else kinds:
        rows = model._base_manager.using(alias_of(model)).filter(
            lease__isnull=False, wake_at__gt=now, wake_at__lte=now + 2 * conf().LEASE
        )
        for row in rows.order_by("wake_at")[:MAX_LEASED]:
            found.setdefault(row.holder, []).append(row)
    return found
