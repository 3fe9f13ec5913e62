"""The switchboard: a listener that lets events spawn agents, and puts each event's beats into the mailboxes of the
agents that it is for.

Agents are spawned in the transaction in which their event occurs. Beats are put in after their commit, found by key: a
few queries, however many agents there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db.models import Exists, OuterRef, Q

from ..events.models import Event, Shapes
from ..events.subscribers import Listener, Notification
from .definitions import all_agents, handlers_hearing
from .delivery import executions_for
from .mailbox import put
from .models import AgentRun, HandlerExecution, HandlerStatus, touch
from .spawning import spawn


class AgentSubscriber(Listener):
    """Follows events on behalf of the agents."""

    def occurred(self, events: Sequence[Event], now: datetime) -> None:
        spawn(events, now)

    def wants_notification(self, event: Event, milestone: str) -> bool:
        # Every occurrence, where there are agents: their claims may end after a number of them.
        return (milestone == "" and bool(all_agents())) or any(
            each.milestone == milestone for each in handlers_hearing(event)
        )

    def notify(self, news: Sequence[Notification], shapes: Shapes, now: datetime) -> None:
        found = list(executions_for(news, now))
        put(found)
        if found:
            touch(each.run_id for each in found)

    def still_needs(self) -> Sequence[Q]:
        pending = HandlerExecution.objects.filter(event=OuterRef("pk"), status__in=UNFINISHED)
        spawning = AgentRun.objects.filter(event=OuterRef("pk"), started_at=None).unfinished()
        return [Q(Exists(pending)), Q(Exists(spawning))]


UNFINISHED = (HandlerStatus.PENDING, HandlerStatus.PARKED)
