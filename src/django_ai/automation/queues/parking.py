"""Parking: how a row is set aside with a reason, and how it comes back.

A row is parked for a *person* (its worker was killed three times, a payload was refused), or for *code*: this worker
does not know the class, step or event, or cannot read the Context, and another worker may, now (two releases side by
side) or after the next deployment. One that is parked for code keeps a ``wake_at``: it is looked at again by the same
claim as every other row, ever more slowly the longer it has been parked, and goes on where it stood as soon as a worker
can. Code changes only with the process, so each new process lets all of them be looked at once, whatever their time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from ..values.json_text import storable
from .lease import advance
from .models import Wakeable
from .signals import row_parked

PARKED = "parked"

FIRST_LOOK = timedelta(seconds=5)
LAST_LOOK = timedelta(hours=1)


def next_look(parked_at: datetime, now: datetime) -> datetime:
    """Return when a row that has been parked for code since ``parked_at`` is looked at again."""
    return now + min(max((now - parked_at) / 4, FIRST_LOOK), LAST_LOOK)


def reason_of(row: object, error: Exception) -> str:
    """Return ``error`` as the reason why ``row`` is parked: it begins with the error's class, and names the row."""
    text = str(error)
    return f"{type(error).__name__}: {text if text.startswith(str(row)) else f'{row}: {text}'}"


def parked(row: Wakeable, reason: str, now: datetime, *, awaiting_deploy: bool) -> dict[str, Any]:
    """Return the changes that set ``row`` aside."""
    since = row.parked_at if awaiting_deploy and row.parked_at is not None else now
    changes: dict[str, Any] = {
        "error": storable(reason),
        "parked_at": since,
        "wake_at": next_look(since, now) if awaiting_deploy else None,
        "lease": None,
        # To find no code is no progress: what was lost before may have killed its worker, or heard something.
        "losses": row.losses if awaiting_deploy else 0,
    }
    return {"status": PARKED, **changes} if hasattr(row, "status") else changes


def park(row: Wakeable, reason: str, now: datetime, *, awaiting_deploy: bool) -> None:
    """Park a row that this worker has. Fenced; raises ``LeaseLostError``. A look that finds nothing new makes no
    noise."""
    known = awaiting_deploy and row.parked_at is not None
    advance(row, parked(row, reason, now, awaiting_deploy=awaiting_deploy))
    if not known:
        row_parked.send_robust(type(row), row=row, reason=reason)


def unpark(row: Wakeable, status: str) -> None:
    """Let a row that was parked for code go on as ``status`` in this worker's hands. Fenced."""
    advance(row, {"status": status, "error": "", "parked_at": None, "losses": row.losses})
