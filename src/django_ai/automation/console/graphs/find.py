"""Finds the graph of what has a name: a workflow, an agent, an event, a callback or a schedule."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from ...agents.definitions import all_agents, registered_agent
from ...events.callbacks import all_callbacks
from ...events.names import may_match
from ...events.schedules.definitions import all_schedules, event_name_of, find_schedule
from ...events.sources import declared_names
from ...exceptions import UnknownDefinitionError
from ...workflows.definitions import find_workflow, newest_workflows
from .agents import agent_graph
from .events import callback_graph, event_graph
from .model import Graph
from .workflows import workflow_graph

KINDS = ("workflow", "agent", "event", "callback", "schedule")


def graph_names() -> dict[str, list[str]]:
    """Return the names of everything that has a graph, by kind and in order."""
    return {
        "workflow": sorted(each.name for each in newest_workflows()),
        "agent": sorted(each.name for each in all_agents()),
        "event": sorted(declared_names()),
        "callback": sorted({each.name for each in all_callbacks()}),
        "schedule": sorted(each.name for each in all_schedules()),
    }


def graph_named(name: str, *, kind: str = "", version: str | None = None) -> Graph:
    """Return the graph of a workflow, an agent, an event, a callback or a schedule.

    Args:
        name: Its name. Where several kinds have it, the first of this order counts.
        kind: ``"workflow"``, ``"agent"``, ``"event"``, ``"callback"`` or ``"schedule"``. Default: any.
        version: The version of a workflow. Default: the newest.

    Raises:
        UnknownDefinitionError: If nothing of this kind has the name; with the nearest name.
        UnknownWorkflowError: If the workflow has no such version.
    """
    if kind and kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Write one of {', '.join(map(repr, KINDS))}."
        raise UnknownDefinitionError(f"kind={kind!r} has no graphs. {hint}")
    names = graph_names()
    for each in (kind,) if kind else KINDS:
        if name in names[each] or (each == "event" and any(may_match(name, one) for one in names[each] if name)):
            return _makers[each](name) if each != "workflow" else workflow_graph(find_workflow(name, version))
    known = [one for each in ((kind,) if kind else KINDS) for one in names[each]]
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(repr, known[:20])) or 'none'}."
    raise UnknownDefinitionError(
        f"No {kind or 'workflow, agent, event, callback or schedule'} is called {name!r}. {hint}"
    )


def _of_agent(name: str) -> Graph:
    definition = registered_agent(name)
    assert definition is not None
    return agent_graph(definition)


def _of_schedule(name: str) -> Graph:
    definition = find_schedule(name)
    assert definition is not None
    return event_graph(event_name_of(definition.target))


_makers: dict[str, Callable[[str], Graph]] = {
    "agent": _of_agent,
    "event": event_graph,
    "callback": callback_graph,
    "schedule": _of_schedule,
}
