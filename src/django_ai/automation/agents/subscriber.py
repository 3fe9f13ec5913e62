"""A subscriber that lets events spawn agents, and delivers the milestones of events to mailboxes.

Agents are spawned in the transaction in which their event occurs. Delivery comes after its commit and finds the agents
by key, with a few queries for any number of agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db.models import Exists, OuterRef, Q

from ..events.models import Event, Shapes
from ..events.subscribers import Notification, Subscriber
from ..queues.advance import Started
from .definitions import agents_spawned_by, all_agents, handlers_for
from .delivery import executions_for
from .mailbox import put_in_mailbox
from .models import AgentRun, HandlerExecution, HandlerStatus, touch
from .spawning import priority_by_event, spawn

UNFINISHED = (HandlerStatus.PENDING, HandlerStatus.WAITING, HandlerStatus.PARKED)


class AgentSubscriber(Subscriber):
    """Spawns agents and fills their mailboxes."""

    def needs_recorded_after(self, event: Event) -> bool:
        return bool(agents_spawned_by(event))

    def prepare(self, events: Sequence[Event]) -> None:
        for event in events:
            for definition in agents_spawned_by(event):
                priority_by_event(event, definition)

    def occurred(self, events: Sequence[Event], now: datetime) -> None:
        spawn(events, now)

    def started_by(self, event: Event, now: datetime) -> Sequence[Started] | None:
        return None if agents_spawned_by(event) else ()

    def wants_notification(self, event: Event, milestone: str) -> bool:
        # Every occurrence, if there are agents: a claim of theirs may end after a number of occurrences.
        return (milestone == "" and bool(all_agents())) or any(
            each.milestone == milestone for each in handlers_for(event)
        )

    def notify(self, notifications: Sequence[Notification], shapes: Shapes, now: datetime) -> None:
        found = list(executions_for(notifications, now))
        put_in_mailbox(found)
        if found:
            touch(each.run_id for each in found)

    def needed_events(self) -> Sequence[Q]:
        pending = HandlerExecution.objects.filter(event=OuterRef("pk"), status__in=UNFINISHED)
        spawning = AgentRun.objects.filter(event=OuterRef("pk"), started_at=None).unfinished()
        return [Q(Exists(pending)), Q(Exists(spawning))]
