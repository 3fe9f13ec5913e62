"""How runs are inserted: by a call, by an event, by a parent. A worker does the rest."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from ..db.writer import alias_of
from ..events.models import Event
from ..events.timing import depth_after
from ..queues.causation import current_cause, next_depth
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..queues.positions import lower_bound
from ..state.contexts import dump_context
from ..values.clock import shift
from ..values.digests import digest
from .definitions import WorkflowDefinition
from .models import WorkflowRun, WorkflowStatus


def insert_run(definition: WorkflowDefinition, context: BaseModel, now: datetime, **columns: Any) -> WorkflowRun:
    """Insert a run that is due now, in the caller's transaction, and ring after its commit.

    Raises ``EventStormError`` if runs start each other without end.
    """
    cause = current_cause()
    depth = next_depth(f"A run of {definition.name}")
    run = WorkflowRun(
        name=definition.name,
        version=definition.version,
        status=WorkflowStatus.RUNNING,
        current_step=definition.start,
        data=json.loads(dump_context(context, f"The Context of {definition.name}")),
        created_at=now,
        wake_at=now,
        position=lower_bound(),
        **{"caused_by": cause.label if cause else "", "depth": depth, **columns},
    )
    run.save(force_insert=True, using=alias_of(WorkflowRun))
    ring_after_commit(alias_of(WorkflowRun), WorkflowRun)
    return run


def origin_key(event: Event, definition: WorkflowDefinition) -> str:
    """Return the unique key of the one run of a workflow that an event starts."""
    return digest("run", event.pk, definition.name)


def new_run(event: Event, definition: WorkflowDefinition, now: datetime, *, position: int = 0) -> WorkflowRun:
    """Return the unsaved run that ``event`` starts: due now, or planned at its offset. Its Context is made when it
    first wakes.

    ``position``: it receives what arrives after this position. A planned run gets its position when it starts.
    """
    planned = definition.offset is not None
    return WorkflowRun(
        name=definition.name,
        version=definition.version,
        status=WorkflowStatus.WAITING if planned else WorkflowStatus.RUNNING,
        current_step=definition.start,
        created_at=now,
        wake_at=shift(event.at or now, definition.offset) if planned else now,
        event=event,
        planned=planned,
        position=0 if planned else position,
        entity_type=event.entity_type,
        entity_id=event.entity_id,
        origin_key=origin_key(event, definition),
        caused_by=f"event:{event.pk}",
        depth=depth_after(event, definition.offset),
    )


REPLANNED_COLUMNS = ("version", "status", "current_step", "created_at", "wake_at", "caused_by", "depth")


def replan(run: WorkflowRun, planned: WorkflowRun) -> None:
    """Plan a withdrawn run again, with the values of ``planned``, which has the same unique key."""
    rows = WorkflowRun.objects.filter(pk=run.pk, status=WorkflowStatus.WITHDRAWN)
    values = {name: getattr(planned, name) for name in REPLANNED_COLUMNS}
    revoke(rows, **values, attempt=0, error="", finished_at=None)
