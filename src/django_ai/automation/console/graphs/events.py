"""The graph of an event: everything that subscribes to it, and the waits of workflows that it ends."""

from __future__ import annotations

from django.utils.translation import gettext

from ...agents.definitions import HandlerDefinition, SpawnOn
from ...events.callbacks import CANCELLED, CREATED, Callback
from ...events.names import may_match
from ...events.schedules.definitions import PREFIX
from ...events.subscriptions import Subscription, subscriptions
from ...events.upcoming import offset_text
from ...workflows.definitions import Start, newest_workflows
from ...workflows.inspection import EventWait, calls_of
from .model import EdgeKind, Graph, GraphBuilder, NodeKind

EVENT = "event"


def event_graph(name: str) -> Graph:
    """Return the graph of the event ``name``, as it is declared: a template or a family stands for all its names."""
    graph = GraphBuilder(name, gettext("Event %s") % name)
    graph.node(EVENT, NodeKind.START, name.removeprefix(PREFIX), gettext("event"))
    for callback in subscriptions.all(Callback):
        if may_match(callback.event_name, name):
            key = graph.node(f"callback:{callback.name}", NodeKind.CALLBACK, callback.name, gettext("function"))
            graph.edge(EVENT, key, _when(callback))
    for start in subscriptions.all(Start):
        if may_match(start.event_name, name):
            key = _workflow(graph, start.workflow.name)
            graph.edge(EVENT, key, ", ".join(filter(None, (gettext("starts"), _when(start)))))
    for spawn in subscriptions.all(SpawnOn):
        if may_match(spawn.event_name, name):
            key = graph.node(f"agent:{spawn.agent.name}", NodeKind.AGENT, spawn.agent.name, gettext("agent"))
            graph.edge(EVENT, key, gettext("spawns"))
    for handler in subscriptions.all(HandlerDefinition):
        if may_match(handler.event_name, name):
            key = graph.node(f"agent:{handler.agent}", NodeKind.AGENT, handler.agent, gettext("agent"))
            graph.edge(EVENT, key, " ".join(filter(None, (f"{handler.method}()", _when(handler)))))
    for workflow in newest_workflows():
        waits = [each for each in calls_of(workflow) if isinstance(each, EventWait)]
        for wait in waits:
            if "{{" not in wait.event_name and may_match(wait.event_name, name):
                key = _workflow(graph, workflow.name)
                graph.edge(EVENT, key, gettext("%s waits for it") % wait.step)
        for cancelling in workflow.cancel_on:
            if (cancelling.wait.event or "") == name:
                key = _workflow(graph, workflow.name)
                graph.edge(EVENT, key, gettext("cancels runs"), EdgeKind.FAILURE)
    if len(graph.nodes) == 1:
        graph.note(gettext("Nothing subscribes to it."))
    return graph.graph()


def _workflow(graph: GraphBuilder, name: str) -> str:
    return graph.node(f"workflow:{name}", NodeKind.WORKFLOW, name, gettext("workflow"))


def _when(subscription: Subscription) -> str:
    words = {CREATED: gettext("when it is recorded"), CANCELLED: gettext("when it is cancelled")}
    if subscription.offset is not None:
        return offset_text(subscription.offset)
    text = words.get(subscription.milestone, "")
    return text if subscription.window is None else gettext("collected")


def callback_graph(name: str) -> Graph:
    """Return the graph of a callback: the events for which it is called."""
    graph = GraphBuilder(name, gettext("Callback %s") % name)
    key = graph.node(f"callback:{name}", NodeKind.CALLBACK, name, gettext("function"))
    for callback in subscriptions.all(Callback):
        if callback.name == name:
            event = graph.node(f"event:{callback.event_name}", NodeKind.START, callback.event_name, gettext("event"))
            graph.edge(event, key, _when(callback))
    return graph.graph()
