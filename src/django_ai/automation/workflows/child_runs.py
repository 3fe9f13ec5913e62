"""Child runs: how a run starts one, and how a child reports its end to its parent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from ..db.writer import alias_of
from ..queues.notifier import ring_after_commit
from .definitions import WorkflowDefinition
from .models import Signal, WorkflowRun
from .starting import insert_run


def ending_of(run: WorkflowRun) -> dict[str, Any]:
    """Return the payload that reports the end of a child to its parent."""
    return {"status": str(run.status), "data": run.data, "error": run.error}


def start_child(
    parent: WorkflowRun, child: WorkflowDefinition, channel: str, context: BaseModel, priority: int, now: datetime
) -> None:
    insert_run(
        child,
        context,
        now,
        parent_id=parent.pk,
        parent_channel=channel,
        depth=parent.depth + 1,
        caused_by=f"workflow:{parent.pk}",
        entity_type=parent.entity_type,
        entity_id=parent.entity_id,
        priority=priority,
    )


def wake_parent(run: WorkflowRun, payload: Mapping[str, Any], now: datetime) -> None:
    """Put the end of a child into its parent's inbox. It only inserts, so locks are taken in one order.

    A child whose parent no longer waits for it has lost its ``parent_channel``.
    """
    if run.parent_id is not None and run.parent_channel:
        Signal.objects.create(
            name=run.parent_channel, payload=dict(payload), run_id=run.parent_id, sent_at=now, wake_at=now
        )
        ring_after_commit(alias_of(Signal), Signal)
