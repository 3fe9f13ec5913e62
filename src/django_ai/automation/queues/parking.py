"""Parking: a row is parked with a reason, and comes back later.

A row is parked for an *operator* (three workers died on it, a payload was refused) or for *code*: this worker does not
know the class, step or event, or cannot read the Context. Another worker may be able to, now (two releases side by
side) or after the next deployment. A row that is parked for code keeps a ``wake_at``: the same claim as for every other
row checks it again, less often the longer it has been parked. It continues where it stopped as soon as a worker has the
code. Code changes only with the process, so each new process lets all such rows be checked once (``deployment``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from ..values.json_text import storable
from .advance import advance
from .signals import row_parked
from .wakeable import Wakeable

PARKED = "parked"

MIN_CHECK_DELAY = timedelta(seconds=5)
MAX_CHECK_DELAY = timedelta(hours=1)


def next_check(parked_at: datetime, now: datetime) -> datetime:
    """Return when a row that has been parked for code since ``parked_at`` is checked again."""
    return now + min(max((now - parked_at) / 4, MIN_CHECK_DELAY), MAX_CHECK_DELAY)


def reason_of(row: object, error: Exception) -> str:
    """Return ``error`` as the reason why ``row`` is parked: it begins with the error's class and names the row."""
    text = str(error)
    return f"{type(error).__name__}: {text if text.startswith(str(row)) else f'{row}: {text}'}"


def parking_changes(row: Wakeable, reason: str, now: datetime, *, awaiting_deploy: bool) -> dict[str, Any]:
    """Return the changes that park ``row``."""
    since = row.parked_at if awaiting_deploy and row.parked_at is not None else now
    changes: dict[str, Any] = {
        "error": storable(reason),
        "parked_at": since,
        "wake_at": next_check(since, now) if awaiting_deploy else None,
        "lease": None,
        # Missing code is no progress: the row may have killed the workers that lost it before.
        "losses": row.losses if awaiting_deploy else 0,
    }
    return {"status": PARKED, **changes} if hasattr(row, "status") else changes


def park(row: Wakeable, reason: str, now: datetime, *, awaiting_deploy: bool) -> None:
    """Park a row that this worker has leased. Fenced; raises ``LeaseLostError``. Sends ``row_parked``, except for a row
    that was checked again and still lacks its code."""
    is_known = awaiting_deploy and row.parked_at is not None
    advance(row, parking_changes(row, reason, now, awaiting_deploy=awaiting_deploy))
    if not is_known:
        row_parked.send_robust(type(row), row=row, reason=reason)


def unpark(row: Wakeable, status: str) -> None:
    """Let a row that was parked for code continue as ``status``; this worker keeps its lease. Fenced."""
    advance(row, {"status": status, "error": "", "parked_at": None, "losses": row.losses})


def awaits_code(row: Any) -> bool:
    """Return whether ``row`` is parked because the workers lack its code.

    If it is resumed before a worker has the code, it is parked again.
    """
    status, parked_at = getattr(row, "status", ""), getattr(row, "parked_at", None)
    return status == PARKED and parked_at is not None and getattr(row, "wake_at", parked_at) is not None
