"""Spawning: an event inserts the agents that it spawns, in the transaction in which it occurs.

Such a row is PENDING: making its Context is user code, so a worker does that (``activation``). Its ``position``, a
place in the one order of arrivals (``queues/positions.py``), is set here, together with the occurrence. An event that
arrived up to that position was before the agent. An event that arrives after it is for the agent, however late a worker
activates it. Two exceptions: the agent always receives its spawning event, and it receives the later events of that
event's entity.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db.models import Min

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..events.definitions import EventTrigger
from ..events.models import Event
from ..events.names import ANY
from ..queues.notifier import ring_after_commit
from ..queues.positions import lower_bound
from ..values.digests import digest
from .definitions import AgentDefinition, agents_spawned_by
from .models import AgentRun, AgentStatus
from .routing import own_labels

MAX_OCCURRENCE_DELAY = timedelta(seconds=1)
"""An immediate event that occurs later than this after its save was left over by a process that died."""


def spawn(events: Sequence[Event], now: datetime) -> None:
    """Insert the agents that ``events``, which occur in this transaction, spawn."""
    wanted = [(event, each) for event in events for each in agents_spawned_by(event)]
    if not wanted:
        return
    bound = min([lower_bound(), *(event.position - 1 for event in events if event.position)])
    runs = [new_run(event, each, now, _position_of(event, bound, now)) for event, each in wanted]
    if insert_ignoring(AgentRun, runs):
        ring_after_commit(alias_of(AgentRun), AgentRun)


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
        entity_id=event.entity_id,
        origin_key=origin_key(event, definition.name),
        caused_by=f"event:{event.pk}",
        depth=event.depth + 1,
    )


def origin_key(event: Event, name: str) -> str:
    """Return the unique key of the one agent of this name that ``event`` spawns."""
    return digest("agent run", event.pk, name)


def _position_of(event: Event, bound: int, now: datetime) -> int:
    """Return the position of an agent that ``event`` spawns.

    It is ``bound``, unless another process has left an immediate event over: then the position is before the first
    event of the entity since the save that made the immediate event occur.
    """
    definition, since = event.definition, event.at
    if definition is None or definition.is_scheduled or since is None:
        return bound
    family = own_labels(event.entity_type, ANY)
    theirs = Event.objects.filter(entity_type__in=family, entity_id=event.entity_id)
    if since == event.event_created_at and event.trigger != EventTrigger.UPDATE:
        # If this save created the entity, all events of the entity came after it. A worker may have fired a date that
        # was past already before the process that saved fires this event.
        found = theirs.aggregate(made=Min("event_created_at"), first=Min("position"))
        if found["made"] == since:
            return bound if found["first"] is None else min(bound, found["first"] - 1)
    if now - since <= MAX_OCCURRENCE_DELAY:
        return bound
    first = theirs.filter(occurred_at__gte=since).aggregate(first=Min("position"))["first"]
    return bound if first is None else min(bound, first - 1)
