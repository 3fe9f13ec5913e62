"""Deployments: code changes with the process, so each new one lets all rows that wait for code be checked once."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from django.db import models

from ..db.writer import alias_of
from .parking import PARKED
from .registry import wakeables

AT_ONCE = 10_000
"""How many rows of a model a new process looks at once; the others keep their time."""


_looked_in: int | None = None


def look_at_once(now: datetime) -> int:
    """Let what is parked for code be looked at now: once in the life of each process. Return how many rows."""
    global _looked_in
    if _looked_in == os.getpid():
        return 0
    found = sum(_look(model, now) for model in wakeables() if any(each.name == "status" for each in model._meta.fields))
    _looked_in = os.getpid()
    return found


def _look(model: Any, now: datetime) -> int:
    rows: models.QuerySet[Any] = model._base_manager.using(alias_of(model)).filter(
        status=PARKED, parked_at__isnull=False, lease=None, wake_at__gt=now
    )
    pks = list(rows.order_by("parked_at").values_list("pk", flat=True)[:AT_ONCE])
    return sum(rows.filter(pk__in=pks[start : start + 1000]).update(wake_at=now) for start in range(0, len(pks), 1000))
