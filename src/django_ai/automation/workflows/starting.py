"""How runs are inserted: by a call, by an event, by a parent. A worker does the rest."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from ..db.inserts import insert
from ..db.new_rows import new
from ..db.writer import alias_of
from ..events.models import Event
from ..events.priorities import priority_of
from ..events.timing import depth_after, trace_after
from ..queues.causation import cause_now, next_depth
from ..queues.lanes import lane_of
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..queues.positions import insert_bounded, lower_bound
from ..state.contexts import dump_context
from ..values.clock import shift
from ..values.digests import digest
from .definitions import WorkflowDefinition
from .models import WorkflowRun
from .statuses import WorkflowStatus


def insert_run(definition: WorkflowDefinition, context: BaseModel, now: datetime, **columns: Any) -> WorkflowRun:
    """Insert a run that is due now, in the caller's transaction, and ring after its commit.

    Raises ``EventStormError`` if runs start each other without end, and what a function for the priority raises.
    """
    run = run_due_now(definition, context, now, **columns)
    if not insert_bounded(run):
        run.position = lower_bound()
        insert(run)
    ring_after_commit(alias_of(WorkflowRun), lane_of(run))
    return run


def run_due_now(definition: WorkflowDefinition, context: BaseModel, now: datetime, **columns: Any) -> WorkflowRun:
    """Return an unsaved run that is due now, without its position. Raises as ``insert_run`` does."""
    depth = next_depth(f"A run of {definition.name}")
    return new(
        WorkflowRun,
        name=definition.name,
        version=definition.version,
        status=WorkflowStatus.RUNNING,
        data=json.loads(dump_context(context, f"The Context of {definition.name}")),
        created_at=now,
        deadline=definition.deadline_from(now),
        wake_at=now,
        queue=definition.queue,
        priority=columns.pop("priority") if "priority" in columns else definition.priority_by_hand(context),
        **{
            "current_step": definition.start,
            "caused_by": cause_now()[0],
            "depth": depth,
            **columns,
        },
    )


def origin_key(event: Event, definition: WorkflowDefinition) -> str:
    """Return the unique key of the one run of a workflow that an event starts."""
    return origin_key_of(event.pk, definition.name)


def origin_key_of(event_pk: int | None, name: str) -> str:
    return digest("run", event_pk, name)


def new_run(event: Event, definition: WorkflowDefinition, now: datetime, *, position: int = 0) -> WorkflowRun:
    """Return the unsaved run that ``event`` starts: due now, or planned at its offset. Its Context is made when it
    first wakes.

    ``position``: it receives what arrives after this position. A planned run gets its position and its deadline when
    it starts; until then it keeps the position after which events cancel it, if its workflow has such events.
    """
    planned = definition.offset is not None
    return WorkflowRun(
        name=definition.name,
        version=definition.version,
        status=WorkflowStatus.WAITING if planned else WorkflowStatus.RUNNING,
        current_step=definition.start,
        created_at=now,
        deadline=None if planned else definition.deadline_from(now),
        wake_at=shift(event.at or now, definition.offset, event.zone) if planned else now,
        event=event,
        planned=planned,
        position=_planned_position(definition, position) if planned else position,
        entity_type=event.entity_type,
        entity_id="" if event.is_free else event.entity_id,
        origin_key=origin_key(event, definition),
        queue=definition.queue,
        priority=priority_by_event(event, definition),
        caused_by=f"event:{event.pk}",
        depth=depth_after(event, definition.offset),
        trace_context=trace_after(event, definition.offset),
    )


def priority_by_event(event: Event, definition: WorkflowDefinition) -> int:
    """Return the priority of the run that ``event`` starts."""
    return priority_of(event, f"workflow {definition.name}", definition.priority)


def _planned_position(definition: WorkflowDefinition, position: int) -> int:
    """Return the position of a planned run: 0 means that it has none yet, and -1 is before all others."""
    return (position or -1) if definition.cancel_on else 0


REPLANNED_COLUMNS = (
    "version",
    "status",
    "current_step",
    "created_at",
    "wake_at",
    "queue",
    "priority",
    "position",
    "caused_by",
    "depth",
    "trace_context",
)


def replan(run: WorkflowRun, planned: WorkflowRun) -> None:
    """Plan a withdrawn run again, with the values of ``planned``, which has the same unique key."""
    rows = WorkflowRun.objects.filter(pk=run.pk, status=WorkflowStatus.WITHDRAWN)
    values = {name: getattr(planned, name) for name in REPLANNED_COLUMNS}
    if run.data:
        values["data"] = {}  # made for an earlier date, when it asked for its limits
    counts = {"attempt": 0, "deferrals": 0, "failed_evaluations": 0}
    revoke(rows, **values, **counts, error="", finished_at=None, deadline=None)
