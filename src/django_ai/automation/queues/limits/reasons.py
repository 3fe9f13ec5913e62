"""What a row waits for that needs a slot of a limit, in words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.utils.functional import lazy
from django.utils.translation import gettext

from ..models import Slot, SlotState
from .owners import find_owner


def slot_reason(kind: str, pk: int) -> str:
    """Return which limit the row waits for; empty if it waits for none."""
    return str(slot_reasons(kind, [pk]).get(pk, ""))


def slot_reasons(kind: str, pks: Collection[int]) -> dict[int, Any]:
    """Return which limits the rows wait for, with one query. Rows that wait for none are left out.

    The reasons are in the language that is active when they are shown.
    """
    queued = Slot.objects.filter(row_kind=kind, row_pk__in=pks, state=SlotState.QUEUED).select_related("limiter")
    return {slot.row_pk or 0: _lazy_reason(slot.limiter) for slot in queued}


def _reason(limiter: Any) -> str:
    owner = find_owner(limiter.row_kind)
    if owner is None or owner.find(limiter.name) is None:
        return gettext("code that has the %(kind)s %(name)s, to be admitted by its limits") % {
            "kind": limiter.row_kind,
            "name": repr(limiter.name),
        }
    return gettext("a slot of %s") % str(limiter.in_words())


_lazy_reason = lazy(_reason, str)
