"""The graph of an agent: the events that spawn it, those that it handles, and the handlers that end it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from django.utils.translation import gettext

from ...agents.definitions import AgentDefinition, HandlerDefinition
from ...agents.models import AgentStatus
from ...events.matching.match import Match
from ...events.upcoming import offset_text
from .model import Graph, GraphBuilder, NodeKind

AGENT = "agent"
_ENDS = {"complete": AgentStatus.COMPLETED, "cancel": AgentStatus.CANCELLED}


def event_key(name: str) -> str:
    """Return the key of the node of an event that is handled."""
    return f"event:{name}"


def handler_key(handler: HandlerDefinition) -> str:
    return f"handler:{handler.method}"


def agent_graph(definition: AgentDefinition) -> Graph:
    """Return the graph of an agent."""
    title = gettext("Agent %(name)s, version %(version)s") % {"name": definition.name, "version": definition.version}
    graph = GraphBuilder(definition.name, title)
    for name in definition.spawn_on:
        key = graph.node(f"spawn:{name}", NodeKind.START, name, gettext("event"))
        graph.edge(key, AGENT, gettext("spawns"))
    if not definition.spawn_on:
        graph.edge(graph.node("spawn", NodeKind.START, gettext("spawned by code")), AGENT)
    graph.node(AGENT, NodeKind.AGENT, definition.name, _agent_detail(definition))
    for handler in definition.handlers:
        event = graph.node(event_key(handler.event_name), NodeKind.EVENT, handler.event_name)
        graph.edge(AGENT, event, _match_text(definition.match_of(handler)))
        conditions = [] if handler.condition is None else [gettext("if its condition is true")]
        key = graph.node(handler_key(handler), NodeKind.HANDLER, handler.method, ", ".join(conditions))
        graph.edge(event, key, "" if handler.offset is None else offset_text(handler.offset))
        for status in _ends_of(definition, handler):
            end = graph.node(f"end:{status.value}", NodeKind.END, str(status.label))
            graph.edge(key, end)
    if not any(edge.target.startswith("end:") for edge in graph.edges.values()):
        graph.note(gettext("No handler ends the agent, as far as its source tells."))
    return graph.graph()


def _agent_detail(definition: AgentDefinition) -> str:
    return gettext("one for each match") if definition.singleton else ""


def _match_text(match: Match | None) -> str:
    return "" if match is None else ", ".join(f"{name} = {value}" for name, value in match.lookups)


def _ends_of(definition: AgentDefinition, handler: HandlerDefinition) -> Iterator[AgentStatus]:
    """Yield the statuses with which the source of a handler ends its agent: ``AgentManager.complete(run)``."""
    try:
        method = inspect.getattr_static(definition.cls, handler.method)
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (AttributeError, OSError, TypeError, SyntaxError):
        return
    seen = set[AgentStatus]()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="AgentManager"), attr=verb)) if verb in _ENDS:
                status = _ENDS[verb]
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="AgentManager"), attr=verb)) if verb in _ENDS:
                status = _ENDS[verb]
            case _:
                continue
        if status not in seen:
            seen.add(status)
            yield status
