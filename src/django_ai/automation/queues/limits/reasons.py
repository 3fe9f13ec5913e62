"""What a row waits for that needs a slot of a limit, in words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..models import Slot, SlotState
from .owners import find_owner


def slot_reason(kind: str, pk: int) -> str:
    """Return which limit the row waits for; empty if it waits for none."""
    return slot_reasons(kind, [pk]).get(pk, "")


def slot_reasons(kind: str, pks: Collection[int]) -> dict[int, str]:
    """Return which limits the rows wait for, with one query. Rows that wait for none are left out."""
    queued = Slot.objects.filter(row_kind=kind, row_pk__in=pks, state=SlotState.QUEUED).select_related("limiter")
    return {slot.row_pk or 0: _reason(slot.limiter) for slot in queued}


def _reason(limiter: Any) -> str:
    owner = find_owner(limiter.row_kind)
    if owner is None or owner.find(limiter.name) is None:
        return f"code that has the {limiter.row_kind} {limiter.name!r}, to be admitted by its limits"
    return f"a slot of {limiter}"
