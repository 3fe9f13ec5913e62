"""Spawning: an event inserts the agents that it spawns, in the transaction in which it occurs.

Such a row is PENDING: making its Context is user code, so a worker does that (``activation``). Its ``position``, a
place in the one order of arrivals (``queues/positions.py``), is set here, together with the occurrence. An event that
arrived up to that position was before the agent. An event that arrives after it is for the agent, however late a worker
activates it. Two exceptions: the agent always receives its spawning event, and it receives the later events of that
event's entity.

An event that is due when it is recorded (a save, ``emit``) occurs a moment after the commit, and what is saved next may
occur before it, made by another process. So the order is that of the records: the recorder stores the position in
``Event.recorded_after``. A scheduled event has the position at which it occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..events.models import Event
from ..events.priorities import priority_of
from ..queues.lanes import lane_of
from ..queues.notifier import ring_after_commit
from ..queues.positions import lower_bound
from ..values.digests import digest
from .definitions import AgentDefinition, agents_spawned_by
from .models import AgentRun, AgentStatus


def spawn(events: Sequence[Event], now: datetime) -> None:
    """Insert the agents that ``events``, which occur in this transaction, spawn."""
    wanted = [(event, each) for event in events for each in agents_spawned_by(event)]
    if not wanted:
        return
    before = _positions_before([event for event, _ in wanted])
    runs = [new_run(event, each, now, before[event.pk]) for event, each in wanted]
    if insert_ignoring(AgentRun, runs):
        ring_after_commit(alias_of(AgentRun), *map(lane_of, runs))


def new_run(event: Event, definition: AgentDefinition, now: datetime, position: int) -> AgentRun:
    """Return the unsaved agent that ``event`` spawns; a worker makes its Context when it activates the agent."""
    return AgentRun(
        name=definition.name,
        version=definition.version,
        status=AgentStatus.PENDING,
        created_at=now,
        wake_at=now,
        position=position,
        event=event,
        entity_type=event.entity_type,
        entity_id="" if event.is_free else event.entity_id,
        origin_key=origin_key(event, definition.name),
        queue=definition.queue,
        priority=priority_by_event(event, definition),
        caused_by=f"event:{event.pk}",
        depth=event.depth + 1,
        trace_context=event.trace_context,
    )


def priority_by_event(event: Event, definition: AgentDefinition) -> int:
    """Return the priority of the agent that ``event`` spawns."""
    return priority_of(event, f"agent {definition.name}", definition.priority)


def origin_key(event: Event, name: str) -> str:
    """Return the unique key of the one agent of this name that ``event`` spawns."""
    return origin_key_of(event.pk, name)


def origin_key_of(event: int | None, name: str) -> str:
    """Return the ``origin_key`` for the event with this primary key."""
    return digest("agent run", event, name)


def _positions_before(events: Sequence[Event]) -> dict[int, int]:
    """Return the position of the agents that each event spawns: the one at which the event was recorded, if it was due
    at once, and else the one at which it occurs."""
    positions = {event.pk: event.recorded_after for event in events if event.recorded_after is not None}
    others = [event for event in events if event.pk not in positions]
    if others:
        bound = min([lower_bound(), *(event.position - 1 for event in others if event.position)])
        positions |= {event.pk: bound for event in others}
    return positions
