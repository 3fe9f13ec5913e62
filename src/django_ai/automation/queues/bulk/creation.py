"""Creating, cancelling and resuming bulk actions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import models
from django.utils import timezone

from ...db.writer import alias_of
from ...exceptions import DefinitionError, NotResumableError
from ...values.clock import aware
from ...values.json_text import storable
from ..acting import current_actor, signed
from ..history import note, noted, noting
from ..lease import revoke
from ..models import BulkAction, BulkStatus
from ..notifier import ring_after_commit
from .filters import BulkFilter, check_filter, has_problem, rows_of, with_end_of_error
from .verbs import BulkKind, BulkVerb, find_kind, find_verb

MAX_COUNTED_ROWS = 100_000
"""How many rows are counted when a bulk action is created. ``total`` is one more if there are more."""
MAX_COUNTED_ERRORS = 10_000
"""How many errors are read to count the rows that have a problem."""
UNFINISHED = (BulkStatus.PENDING, BulkStatus.RUNNING, BulkStatus.PARKED)


def create_bulk(verb: str, kind: str, rows: BulkFilter, reason: str = "", now: datetime | None = None) -> BulkAction:
    """Insert a bulk action in the caller's transaction. See ``engine.bulk``."""
    found = find_kind(kind)
    action, stored = find_verb(found, verb), rows.as_json()
    check_filter(found, stored)
    actor, moment = current_actor(), now or timezone.now()
    last = found.model._base_manager.using(alias_of(found.model)).order_by("-pk").values_list("pk", flat=True).first()
    row = BulkAction(
        verb=verb,
        row_kind=kind,
        filter=stored,
        reason=storable(reason or (actor.reason if actor else "")),
        actor=storable(actor.label) if actor else "",
        actor_name=storable(actor.name)[:200] if actor else "",
        total=count_rows(found, action, stored),
        last_pk=last or 0,
        created_at=moment,
        wake_at=moment,
    )
    with noting(BulkAction):
        row.save(force_insert=True, using=alias_of(BulkAction))
        note(row, "Added", reason)
    ring_after_commit(alias_of(BulkAction), BulkAction)
    return row


def count_rows(kind: BulkKind, verb: BulkVerb, stored: Mapping[str, Any]) -> int:
    """Return how many rows a bulk action would change; ``MAX_COUNTED_ROWS + 1``: more than that."""
    rows = rows_of(kind, stored).filter(verb.applies()).order_by()
    if "problem" not in stored:
        return rows.values("pk")[: MAX_COUNTED_ROWS + 1].count()
    read = list(with_end_of_error(rows)[: MAX_COUNTED_ERRORS + 1])
    if len(read) > MAX_COUNTED_ERRORS:
        return MAX_COUNTED_ROWS + 1
    return sum(has_problem(stored["problem"], end) for _pk, end in read)


def is_capped(total: int) -> bool:
    """Return whether there were more rows than were counted."""
    return total > MAX_COUNTED_ROWS


def cancel_bulk(bulk: BulkAction | int, reason: str = "Cancelled.", now: datetime | None = None) -> bool:
    """Stop a bulk action, in the caller's transaction; return whether it was unfinished. See ``engine.cancel_bulk``."""
    pk = _key_of(bulk)
    rows = BulkAction.objects.filter(pk=pk, status__in=UNFINISHED)
    changes: dict[str, Any] = {
        "status": BulkStatus.CANCELLED,
        "error": storable(signed("Cancelled", reason)),
        "finished_at": now or timezone.now(),
        "wake_at": None,
    }
    with noting(BulkAction) as is_noted:
        if not revoke(rows, **changes):
            return False
        if is_noted:
            note(BulkAction.objects.get(pk=pk), "Cancelled", reason)
    if isinstance(bulk, BulkAction):
        bulk.refresh_from_db()
    return True


@noted("Resumed")
def resume_bulk(row: BulkAction, now: datetime) -> None:
    """Let a parked bulk action continue where it stopped. Raises ``NotResumableError``."""
    moment = aware(now, "now")
    parked: models.QuerySet[BulkAction] = BulkAction.objects.filter(pk=row.pk, status=BulkStatus.PARKED)
    status = BulkStatus.PENDING if row.started_at is None else BulkStatus.RUNNING
    if not revoke(parked, status=status, error="", parked_at=None, wake_at=moment):
        raise NotResumableError(f"{row} is {row.status}; only a parked one can be resumed.")
    ring_after_commit(alias_of(BulkAction), BulkAction)
    row.refresh_from_db()


def _key_of(bulk: Any) -> int:
    if isinstance(bulk, BulkAction) and bulk.pk is not None:
        return int(bulk.pk)
    if isinstance(bulk, int) and not isinstance(bulk, bool):
        return bulk
    raise DefinitionError(f"engine.cancel_bulk({bulk!r:.80}): give a BulkAction or its primary key.")
