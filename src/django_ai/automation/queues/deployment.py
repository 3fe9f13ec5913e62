"""Deployments: code changes with the process, so each new process lets all rows that are parked for code be checked."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from django.db import models

from ..db.writer import alias_of
from .parking import PARKED
from .registry import wakeables

MAX_ROWS_PER_MODEL = 10_000
"""How many rows of a model a new process makes due; the others keep their time."""
ROWS_PER_UPDATE = 1000

_checked_by_pid: int | None = None


def check_parked_rows_soon(now: datetime) -> int:
    """Make all rows that are parked for code due now, once per process. Return how many rows."""
    global _checked_by_pid
    if _checked_by_pid == os.getpid():
        return 0
    parkable = [model for model in wakeables() if any(each.name == "status" for each in model._meta.fields)]
    count = sum(_make_due(model, now) for model in parkable)
    _checked_by_pid = os.getpid()
    return count


def _make_due(model: Any, now: datetime) -> int:
    rows: models.QuerySet[Any] = model._base_manager.using(alias_of(model)).filter(
        status=PARKED, parked_at__isnull=False, lease=None, wake_at__gt=now
    )
    pks = list(rows.order_by("parked_at").values_list("pk", flat=True)[:MAX_ROWS_PER_MODEL])
    chunks = [pks[start : start + ROWS_PER_UPDATE] for start in range(0, len(pks), ROWS_PER_UPDATE)]
    return sum(rows.filter(pk__in=chunk).update(wake_at=now) for chunk in chunks)
