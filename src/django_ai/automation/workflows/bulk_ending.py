"""How a bulk action cancels many runs with few statements.

It ends the runs whose end changes no other row: without a path to it, limits, a parent, children, or an event that has
not started them yet. All others are left to ``ending.end_runs``, which ends one after the other, with the same effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import transaction

from ..db.locks import locked
from ..db.writer import alias_of
from ..events.models import EventClaim
from ..queues.causation import own_run_pk
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..values.json_text import storable
from .current_run import KIND
from .definitions import has_limits
from .ending import end_children, hooks_of
from .models import Wait, WorkflowRun
from .statuses import WorkflowStatus

READ = ("name", "version", "ending", "parent_id", "parent_channel", "event_id", "started_at")
"""Columns that decide whether a run is plain. Its Context may be large."""


def cancel_plain_runs(pks: Sequence[int], reason: str, now: datetime, *, at_once: bool = False) -> list[WorkflowRun]:
    """Cancel the plain ones of these runs, and return those.

    One transaction. The rows are locked before it is decided which are plain, as ``end_runs`` does for a run that is
    not. A worker that leases one of them has its write refused.
    """
    alias = alias_of(WorkflowRun)
    with transaction.atomic(using=alias):
        parents = set(WorkflowRun.objects.unfinished().filter(parent__in=pks).values_list("parent", flat=True))
        rows = WorkflowRun.objects.unfinished().filter(pk__in=[pk for pk in pks if pk not in parents])
        found = list(locked(rows).order_by("pk").only(*READ))
        plain = [run for run in found if _is_plain(run, at_once=at_once)]
        if not plain:
            return []
        ended = [run.pk for run in plain]
        changes: dict[str, Any] = {"error": storable(reason), "finished_at": now, "wake_at": None}
        revoke(WorkflowRun.objects.filter(pk__in=ended), status=WorkflowStatus.CANCELLED, **changes)
        Wait.objects.filter(run__in=ended).delete()
        EventClaim.objects.filter(owner_kind=KIND, owner_id__in=ended).delete()
        # Children that a worker has started between the two statements above, before it lost its lease.
        late = set(WorkflowRun.objects.unfinished().filter(parent__in=ended).values_list("parent", flat=True))
        for run in plain:
            if run.pk in late:
                end_children(run, storable(reason), now)
        ring_after_commit(alias)
    return plain


def _is_plain(run: WorkflowRun, *, at_once: bool) -> bool:
    """Return whether nothing but the run itself, its waits and its claims ends with it."""
    if run.ending is not None or run.awaits_start or has_limits(run.name) or run.pk == own_run_pk(KIND):
        return False
    return not (run.parent_id is not None and run.parent_channel) and (at_once or hooks_of(run) is None)
