"""The source of ``upcoming`` for agents: agents that events will spawn, handlers that they will call, and what an
agent of the object, or its mailbox, waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.db import connections
from django.db.models import F, Model
from django.utils.translation import gettext

from ..db.errors import is_database_failure
from ..db.writer import alias_of, from_writer
from ..events.matching.comparisons import COMPARISONS
from ..events.matching.lookups import compare, read_lookup
from ..events.models import Event, EventStatus
from ..events.sources import event_sources
from ..events.subscriptions import subscriptions
from ..events.upcoming import Outlook, Upcoming, planned_moment
from ..exceptions import AutomationError
from ..state.versions import restore
from .definitions import HandlerDefinition, SpawnOn, find_agent, handlers_for
from .models import AgentRoute, AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from .routing import address_for, keys_for


def agents_and_handlers(outlook: Outlook) -> Iterator[Upcoming]:
    """Yield what agents will do for the object."""
    rows = AgentRun.unfinished().filter(outlook.rows()).exclude(status=AgentStatus.ACTIVE)
    listed = list(rows.order_by(F("wake_at").asc(nulls_last=True), "pk")[: outlook.limit])
    AgentRun.load_reasons(listed)
    for run in listed:
        at = None if run.status == AgentStatus.PARKED else run.wake_at
        yield Upcoming("agent", run.name, at, run.waiting_text(outlook.now), run)
    yield from _executions(outlook)
    for event in outlook.events:
        if event.status == EventStatus.PENDING:
            yield from _agents_to_spawn(event)
    yield from _handlers(outlook)


def _executions(outlook: Outlook) -> Iterator[Upcoming]:
    """Yield the unfinished executions in mailboxes: of events of the object, and of agents of the object."""
    seen = set()
    for path in ("event__", "run__"):
        rows = HandlerExecution.unfinished().filter(outlook.rows(path)).order_by("due_at", "pk")
        for row in rows[: outlook.limit]:
            if row.pk not in seen:
                seen.add(row.pk)
                is_parked = row.status == HandlerStatus.PARKED or row.run.status == AgentStatus.PARKED
                at = None if is_parked else row.due_at
                name = f"{row.run.name}.{row.handler}"
                yield Upcoming("handler", name, at, row.waiting_text(outlook.now), row)


def _agents_to_spawn(event: Event) -> Iterator[Upcoming]:
    found = subscriptions.subscribed_to(SpawnOn, event.event_name, event.namespace)
    for spawn_on in {each.agent.name: each for each in found}.values():
        planned = planned_moment(event, spawn_on)
        if planned is not None:
            yield Upcoming("agent", spawn_on.agent.name, *planned, event)


@from_writer()
def _handlers(outlook: Outlook) -> list[Upcoming]:
    """Return the handlers that the events of the object will call, of agents that live now."""
    calls: dict[str, list[tuple[Event, HandlerDefinition]]] = {}
    for event in outlook.events:
        for handler in handlers_for(event):
            if planned_moment(event, handler) is not None:
                for key in keys_for(find_agent(handler.agent), handler, event):
                    calls.setdefault(key, []).append((event, handler))
    if not calls:
        return []
    found, seen = [], set()
    routes = AgentRoute.objects.filter(key__in=list(calls)).select_related("run").order_by("run", "pk")
    for route in routes[: outlook.limit]:
        for event, handler in calls[route.key]:
            call = (route.run_id, event.pk, handler.method, handler.milestone)
            if call not in seen and (extra := _conditions(route.run, handler, event)) is not None:
                seen.add(call)
                at, reason = planned_moment(event, handler) or (outlook.now, "")
                name = f"{handler.agent}.{handler.method}"
                found.append(Upcoming("handler", name, at, reason + extra, route.run))
    return found


def _conditions(run: AgentRun, handler: HandlerDefinition, event: Event) -> str | None:
    """Return what else must hold for the call, as a string; None if the agent's match cannot hold."""
    definition = find_agent(handler.agent)
    match = definition.match_of(handler)
    condition = gettext("if the condition of the handler is true then")
    extra = "" if handler.condition is None else f", {condition}"
    if match is None or match.is_all_exact(event_sources(handler.event_name)):
        return extra
    try:
        context = restore(definition, run.data, run.version, str(run)).context
        residual = address_for(definition, handler, match, context).residual
    except AutomationError:
        return extra  # the agent is parked for this error; its mailbox keeps the event until it resumes
    if not all(_may_hold(event.entity, name, value) for name, value in residual.items()):
        return None
    return f", if its match still holds then{extra}" if residual else extra


def _may_hold(entity: Model, name: str, value: Any) -> bool:
    """Return False only for a lookup that Python can compare, and that does not hold."""
    path, _, lookup = name.rpartition("__")
    comparisons: Mapping[str, Any] = COMPARISONS
    if lookup not in comparisons:
        return True
    try:
        return compare([type(entity)], path, lookup, read_lookup(entity, path), value)
    except Exception as error:  # a value that the field cannot hold, or a descriptor of the project that raises
        if is_database_failure(error, connections[alias_of(AgentRun)]):
            raise
        return True
