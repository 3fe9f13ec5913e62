"""The switchboard: a listener that lets events spawn agents, and puts each event's beats into the mailboxes of the
agents that it is for.

Agents are spawned in the transaction in which their event occurs. Beats are put in after their commit, found by key: a
few queries, however many agents there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, OuterRef, Q
from pydantic import BaseModel

from ..events.definitions import sources_of
from ..events.listeners import Listener, News
from ..events.matching import Match, satisfies
from ..events.models import Event, Shapes
from ..events.names import overlap
from ..exceptions import AutomationError
from ..queues.clock import Offset
from ..queues.contexts import load_context
from ..queues.lease import insert_ignoring
from .birth import run_for
from .definitions import AgentDefinition, HandlerDefinition, all_agents, handlers_hearing
from .mailbox import execution_of, put, touch
from .models import AgentRoute, AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from .routes import keys_for, where


class Switchboard(Listener):
    """Follows events on behalf of the agents."""

    def offsets(self, event: Event) -> Sequence[Offset]:
        return [each.offset for each in handlers_hearing(event) if each.offset is not None]

    def reach(self, declared_as: str) -> Sequence[Offset]:
        handlers = (each for definition in all_agents() for each in definition.handlers)
        return [each.offset for each in handlers if each.offset is not None and overlap(each.event_name, declared_as)]

    def occurred(self, events: Sequence[Event], now: datetime) -> None:
        spawned = [run_for(event, each, now) for event in events for each in all_agents() if each.spawns_on(event)]
        insert_ignoring(AgentRun, spawned)

    def wants_telling(self, event: Event, beat: str) -> bool:
        return any(each.beat == beat for each in handlers_hearing(event))

    def tell(self, news: Sequence[News], shapes: Shapes, now: datetime, *, late: bool) -> None:
        found = list(_executions(news, now, late))
        put(found)
        if found or late:
            touch(each.run_id for each in found)

    def still_needs(self) -> Sequence[Q]:
        pending = HandlerExecution.objects.filter(event=OuterRef("pk"), status__in=UNFINISHED)
        unborn = AgentRun.objects.filter(event=OuterRef("pk"), started_at=None).unfinished()
        return [Q(Exists(pending)), Q(Exists(unborn))]


UNFINISHED = (HandlerStatus.PENDING, HandlerStatus.PARKED)


@dataclass(frozen=True, slots=True)
class Call:
    """A handler that hears a beat, for whichever agents have one of the keys."""

    definition: AgentDefinition
    handler: HandlerDefinition
    event: Event


def _executions(news: Sequence[News], now: datetime, late: bool) -> Iterator[HandlerExecution]:
    """Yield what goes into which mailbox."""
    calls: dict[str, list[Call]] = {}
    for each in news:
        for definition in all_agents():
            for handler in definition.handlers_for(each.event, each.beat):
                for key in keys_for(definition, handler, each.event):
                    calls.setdefault(key, []).append(Call(definition, handler, each.event))
    if not calls:
        return
    routes = AgentRoute.objects.filter(key__in=list(calls)).order_by("run")
    judge = _Judge()
    seen = set()
    for key, pk, created_at in routes.values_list("key", "run", "run__created_at"):
        for call in calls[key]:
            if (pk, call.event.pk, call.handler) in seen:
                continue
            # Told late, an event must not reach agents that are younger: they have looked back by themselves.
            if late and call.event.fired_at is not None and created_at > call.event.fired_at:
                continue
            if judge.fits(pk, call):
                seen.add((pk, call.event.pk, call.handler))
                yield execution_of(pk, call.event, call.handler, now)


class _Judge:
    """Compares what keys do not say, with each agent's Context read once."""

    def __init__(self) -> None:
        self._contexts: dict[int, BaseModel | None] = {}

    def fits(self, pk: int, call: Call) -> bool:
        match = call.definition.match_of(call.handler)
        if match is None or match.is_all_exact(sources_of(call.handler.event_name)):
            return True
        return self._compares(pk, call, match)

    def _compares(self, pk: int, call: Call, match: Match) -> bool:
        context, entity = self._context(pk, call.definition), call.event.entity
        if context is None or entity is None:
            return False
        try:
            residual = where(call.definition, call.handler, match, context).residual
        except AutomationError:
            return True  # the agent is parked for it when it wakes, and a person sees why
        return satisfies(entity, residual)

    def _context(self, pk: int, definition: AgentDefinition) -> BaseModel | None:
        if pk not in self._contexts:
            self._contexts[pk] = None
            data = AgentRun.objects.filter(pk=pk, status=AgentStatus.ACTIVE).values_list("data", flat=True).first()
            if data is not None:
                try:
                    self._contexts[pk] = load_context(definition.context, data, f"{definition.name} #{pk}")
                except AutomationError:
                    pass  # the agent itself is parked for it, when it next wakes
        return self._contexts[pk]
