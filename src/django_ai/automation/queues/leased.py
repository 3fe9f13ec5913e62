"""What each worker process has leased now, for the pages of operators."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ..db.writer import alias_of
from . import lane_counts
from .registry import due_times, wakeables
from .wakeable import Wakeable

MAX_LEASED = 1000
"""How many leased rows of each lane are read."""


def leased_rows(now: datetime, kinds: Iterable[type[Wakeable]] | None = None) -> dict[str, list[Any]]:
    """Return what each process has leased, by its host and process id: two queries, and one more for each kind
    of row of which some are leased."""
    models = set(wakeables() if kinds is None else kinds)
    lanes = [lane for lane in due_times(with_paused=True) if lane.model in models]
    keys: dict[type[Wakeable], list[int]] = {}
    for leased in lane_counts.leased_rows(lanes, now, MAX_LEASED):
        keys.setdefault(leased.model, []).append(leased.pk)
    found: dict[str, list[Any]] = {}
    for model, pks in keys.items():
        rows = model._base_manager.using(alias_of(model)).filter(pk__in=pks, lease__isnull=False, wake_at__gt=now)
        for row in rows.order_by("wake_at"):
            found.setdefault(row.holder, []).append(row)
    return found
