"""Delivery: which milestones of which events go into which mailbox.

One query finds the agents by key. Where a match compares more than keys can, the rest (its residual) is compared with
each agent's Context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet
from pydantic import BaseModel

from ..db.selects import compiled_select
from ..events.matching.lookups import event_satisfies
from ..events.matching.match import Match
from ..events.models import Event
from ..events.sources import event_sources
from ..events.subscribers import Notification
from ..exceptions import AutomationError
from ..state.versions import restore
from .definitions import AgentDefinition, HandlerDefinition, find_agent, handlers_for
from .mailbox import execution_of
from .models import AgentRoute, AgentRun, HandlerExecution
from .routing import address_for, keys_for


@dataclass(frozen=True, slots=True)
class Call:
    """A handler that subscribes to a milestone of ``event``. ``position``: the position of that milestone."""

    definition: AgentDefinition
    handler: HandlerDefinition
    event: Event
    position: int


def executions_for(
    notifications: Sequence[Notification], now: datetime, *, only: int | None = None
) -> Iterator[HandlerExecution]:
    """Yield the executions to insert, for agents whose position is before that of the milestone.

    Milestones that fired before an agent existed are the subject of ``catch_up``. ``only``: the primary key of the one
    agent to deliver to, whatever its position.
    """
    calls: dict[str, list[Call]] = {}
    for each in notifications:
        position = each.event.position_of(each.milestone)
        for handler in handlers_for(each.event):
            if handler.milestone != each.milestone:
                continue
            definition = find_agent(handler.agent)
            call = Call(definition, handler, each.event, position)
            for key in keys_for(definition, handler, each.event):
                calls.setdefault(key, []).append(call)
    if not calls:
        return
    keys = list(calls)
    routes = _routes_under(keys) if only is None else list(_routes(keys).filter(run=only))
    matcher = _ResidualMatcher()
    seen = set()
    for key, pk, run_position in routes:
        for call in calls[key]:
            this = (pk, call.event.pk, call.handler.method, call.handler.milestone)
            if this in seen or (only is None and call.position <= run_position):
                continue
            if matcher.matches(pk, call):
                seen.add(this)
                yield execution_of(pk, call.event, call.handler, now)


def _routes(keys: Sequence[str]) -> QuerySet[AgentRoute, tuple[str, int, int]]:
    rows = AgentRoute.objects.filter(key__in=keys).order_by("run")
    return rows.values_list("key", "run", "run__position")


_routes_under = compiled_select(_routes)


class _ResidualMatcher:
    """Compares the part of a match that keys cannot; reads each agent's Context once."""

    def __init__(self) -> None:
        self._contexts: dict[int, BaseModel] = {}

    def matches(self, pk: int, call: Call) -> bool:
        match = call.definition.match_of(call.handler)
        if match is None or match.is_all_exact(event_sources(call.handler.event_name)):
            return True
        return self._compares(pk, call, match)

    def _compares(self, pk: int, call: Call, match: Match) -> bool:
        if call.event.entity is None and not call.event.is_free:
            return False
        try:
            residual = address_for(call.definition, call.handler, match, self._context(pk, call.definition)).residual
        except AutomationError:
            return True  # the agent is parked for this error; its mailbox keeps the event until it resumes
        return event_satisfies(call.event, residual)

    def _context(self, pk: int, definition: AgentDefinition) -> BaseModel:
        """Return the agent's Context. Raises ``ContextError``."""
        if pk not in self._contexts:
            found = AgentRun.objects.filter(pk=pk).values_list("data", "version").first()
            data, version = found or (None, definition.version)
            self._contexts[pk] = restore(definition, data, version, f"{definition.name} #{pk}").context
        return self._contexts[pk]
