"""Delivery: which beats of which events go into whose mailbox. Found by key in one query, and where a match says more
than keys can, compared with each agent's Context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel

from ..events.definitions import sources_of
from ..events.matching.lookups import satisfies
from ..events.matching.match import Match
from ..events.models import Event
from ..events.subscribers import Notification
from ..exceptions import AutomationError
from ..state.versions import restore
from .definitions import AgentDefinition, HandlerDefinition, find_agent, handlers_hearing
from .mailbox import execution_of
from .models import AgentRoute, AgentRun, HandlerExecution
from .routing import keys_for, where


@dataclass(frozen=True, slots=True)
class Call:
    """A handler that hears a beat, for whichever agents have one of the keys. ``position``: where the beat arrived."""

    definition: AgentDefinition
    handler: HandlerDefinition
    event: Event
    position: int


def executions_for(
    news: Sequence[Notification], now: datetime, *, only: int | None = None
) -> Iterator[HandlerExecution]:
    """Yield what goes into which mailbox: of agents whose position is before that of the beat. What came before an
    agent it looks back for, if it is its business at all. ``only``: for this one agent, whatever its position."""
    calls: dict[str, list[Call]] = {}
    for each in news:
        position = each.event.position_of(each.milestone)
        for handler in handlers_hearing(each.event):
            if handler.milestone != each.milestone:
                continue
            definition = find_agent(handler.agent)
            call = Call(definition, handler, each.event, position)
            for key in keys_for(definition, handler, each.event):
                calls.setdefault(key, []).append(call)
    if not calls:
        return
    routes = AgentRoute.objects.filter(key__in=list(calls)).order_by("run")
    if only is not None:
        routes = routes.filter(run=only)
    judge = _ResidualMatcher()
    seen = set()
    for key, pk, behind in routes.values_list("key", "run", "run__position"):
        for call in calls[key]:
            this = (pk, call.event.pk, call.handler.method, call.handler.milestone)
            if this in seen or (only is None and call.position <= behind):
                continue
            if judge.fits(pk, call):
                seen.add(this)
                yield execution_of(pk, call.event, call.handler, now)


class _ResidualMatcher:
    """Compares what keys do not say, with each agent's Context read once."""

    def __init__(self) -> None:
        self._contexts: dict[int, BaseModel] = {}

    def fits(self, pk: int, call: Call) -> bool:
        match = call.definition.match_of(call.handler)
        if match is None or match.is_all_exact(sources_of(call.handler.event_name)):
            return True
        return self._compares(pk, call, match)

    def _compares(self, pk: int, call: Call, match: Match) -> bool:
        entity = call.event.entity
        if entity is None:
            return False
        try:
            residual = where(call.definition, call.handler, match, self._context(pk, call.definition)).residual
        except AutomationError:
            return True  # the agent is parked for it, now or when it wakes; what comes meanwhile waits in its mailbox
        return satisfies(entity, residual)

    def _context(self, pk: int, definition: AgentDefinition) -> BaseModel:
        """Return the agent's Context. Raises ``ContextError``."""
        if pk not in self._contexts:
            found = AgentRun.objects.filter(pk=pk).values_list("data", "version").first()
            data, version = found or (None, definition.version)
            self._contexts[pk] = restore(definition, data, version, f"{definition.name} #{pk}").context
        return self._contexts[pk]
