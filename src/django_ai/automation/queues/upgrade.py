"""What migrations do with rows that older releases have left. Frozen: released migrations call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models import Q
from django.utils import timezone


def date_parked(model: Any, alias: str, reasons: Sequence[str]) -> None:
    """Say since when parked rows have been parked (now: nobody wrote it down), and let those be looked at again whose
    reason begins with one of ``reasons``: they are parked for want of code."""
    now = timezone.now()
    rows = model._base_manager.using(alias).filter(status="parked", parked_at=None)
    wakes = {each.name for each in model._meta.fields} >= {"wake_at"}
    for_code = Q(pk__in=[])
    for reason in reasons:
        for_code |= Q(error__startswith=f"{reason}:")
    if wakes:
        rows.filter(for_code).update(parked_at=now, wake_at=now)
    rows.update(parked_at=now)
