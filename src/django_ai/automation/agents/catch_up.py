"""Catching up: an agent that has just been activated looks back, once, for the events that it has missed.

Three facts decide which events an agent receives, and none of them is a clock:

* Its ``position`` (see ``spawning``): events that arrived after it are for the agent.
* Its routes: once they have committed, delivery finds the agent and puts each event that arrived after the position
  into its mailbox. Only then the agent looks back for events that arrived after the position and were delivered before
  the routes existed; ``started_at`` records that it has looked. Both sides commit first and look second.
* Its mailbox: a unique key for each event, handler and milestone, so an event that both sides find counts once. The
  agents of one singleton key share this record: an event that one of them has handled is not handled by a later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import groupby

from django.db.models import Q, QuerySet
from pydantic import BaseModel

from ..events.matching.lookback import events_matching
from ..events.models import Event, EventStatus
from ..events.names import is_pattern
from ..events.sources import declared_name, event_sources
from .definitions import AgentDefinition, HandlerDefinition
from .mailbox import execution_of, handled_elsewhere, put_in_mailbox
from .models import AgentRun, HandlerExecution
from .routing import address_for, own_labels, scope_of


def spawning_executions(
    run_pk: int, definition: AgentDefinition, event: Event, now: datetime
) -> list[HandlerExecution]:
    """Return the executions of handlers that receive the agent's spawning event whatever the agent's match says.

    A handler with a match of its own receives the event only if that match holds.
    """
    return [
        execution_of(run_pk, event, each, now)
        for each in definition.handlers
        if each.match is None and each.matches(event) and _has_fired(each, event, spawned_by_it=True)
    ]


def catch_up(run: AgentRun, definition: AgentDefinition, context: BaseModel, now: datetime) -> None:
    """Put into the mailbox what the agent has missed.

    That is its spawning event, events that arrived after the agent's position and were delivered before its routes
    existed, and milestones that have fired before the date of an event that has still to occur.
    """
    found = [] if run.event is None else spawning_executions(run.pk, definition, run.event, now)

    def lookup_of(handler: HandlerDefinition) -> tuple[str, str]:
        match = definition.match_of(handler)
        return handler.event_name, "" if match is None else match.identity

    for _, group in groupby(sorted(definition.handlers, key=lookup_of), key=lookup_of):
        handlers = list(group)
        for event, position in _missed_events(run, definition, handlers, context):
            found += [
                execution_of(run.pk, event, each, now)
                for each in handlers
                if each.matches(event) and _is_missed(run, each, event, position)
            ]
    if run.singleton and found:
        handled = handled_elsewhere(run.singleton, {each.event_id for each in found} - {run.event_id or 0}, run)
        found = [each for each in found if each.event_id not in handled]
    put_in_mailbox(found)


def _is_missed(run: AgentRun, handler: HandlerDefinition, event: Event, position: int) -> bool:
    """Return whether the event fired for ``handler`` after ``position``, so that no later delivery includes it."""
    if event.pk == run.event_id and run.origin_key is not None:
        return _has_fired(handler, event, spawned_by_it=True)
    if event.position is not None and event.position > position:
        return _has_fired(handler, event)
    if handler.offset is None or not _has_fired(handler, event):
        return False
    if event.status == EventStatus.PENDING and event.armed:
        return True  # until the event occurs, all its milestones are for the agent
    return event.position_of(handler.milestone) > position


def _has_fired(handler: HandlerDefinition, event: Event, *, spawned_by_it: bool = False) -> bool:
    """Return whether the milestone that ``handler`` subscribes to has fired."""
    if handler.offset is None:
        return event.occurred_at is not None
    if spawned_by_it and event.occurred_at is not None and event.at is not None:
        # An agent that an occurrence spawns is too late for the milestones before that occurrence.
        return handler.milestone in event.fired_offsets and event.moment_of(handler.offset) >= event.at
    return handler.milestone in event.fired_offsets


def _missed_events(
    run: AgentRun, definition: AgentDefinition, handlers: list[HandlerDefinition], context: BaseModel
) -> Iterator[tuple[Event, int]]:
    """Yield events that ``handlers``, which share an event name and a match, may have missed.

    With each comes the position after which it counts: for events of the agent's entity the position of the spawning
    event, for all others the position of the agent.
    """
    first = handlers[0]
    match, sources = definition.match_of(first), event_sources(first.event_name)
    spawned = run.event.position if run.event is not None and run.event.position else run.position
    since = min(run.position, spawned)
    labels = own_labels(run.entity_type, first.event_name)
    events = _arrived_after(first.event_name, since, with_milestones=any(each.offset is not None for each in handlers))
    if match is None and labels:
        found: Iterator[Event] = iter(events.filter(entity_type__in=labels, entity_id=run.entity_id))
    elif match is None:
        found = iter(events)
    else:
        address = address_for(definition, first, match, context)
        found = events_matching(events, sources, scope_of(definition, match), match.values_from(context), address)
    for event in found:
        is_own = event.entity_type in labels and event.entity_id == run.entity_id
        yield event, since if is_own else run.position


def _arrived_after(pattern: str, position: int, *, with_milestones: bool) -> QuerySet[Event, Event]:
    """Return the events that a subscriber to ``pattern`` may have missed after ``position``."""
    wanted = Q(position__gt=position)
    if with_milestones:
        is_current = Q(active_key__isnull=False) | Q(entity_type="")
        still_to_come = is_current & Q(position=None, status=EventStatus.PENDING)
        wanted |= Q(fired_position__gt=position) | still_to_come & Q(fired_position__isnull=False)
    events = Event.objects.filter(wanted)
    if is_pattern(pattern):
        events = events.filter(declared_as__in={declared_name(each) for each in event_sources(pattern)})
    else:
        events = events.filter(event_name=pattern)
    return events.order_by("position", "pk")
