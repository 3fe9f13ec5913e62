"""The flow of a run or an agent: the graph of its code, with the way that it took, where it is, and where it may go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from ..agents.definitions import registered_agent
from ..agents.models import AgentRun, AgentStatus, HandlerStatus
from ..events.names import may_match
from ..events.schedules.definitions import PREFIX
from ..workflows.definitions import WorkflowDefinition
from ..workflows.models import StepExecution, Wait, WorkflowRun
from ..workflows.source_outcomes import OutcomeKind, SourceOutcome, outcomes_of
from ..workflows.statuses import ACTIONS, WorkflowStatus
from .graphs import Graph, Mark, NodeKind, svg
from .graphs.agents import AGENT, agent_graph
from .graphs.workflows import START, STEP, end_key, outcome_key, workflow_graph

MAX_VISITS = 1_000
"""How many of the newest attempts, or of the newest executions, are counted: a run may have tens of thousands."""
_SIGNALS_AND_EVENTS = {OutcomeKind.SIGNAL, OutcomeKind.EVENT}
_PASSING = {"goto", "sleep", "wait", "wait_any", "wait_all", "subflow", "complete", "fail"}


@dataclass(slots=True)
class RunFlow:
    """What the page of a run shows of its graph.

    ``lines``: the same in words. ``notes``: what the graph cannot show.
    """

    drawing: SafeString
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def words(self) -> dict[str, str]:
        """The labels of the section."""
        return {"title": gettext("Flow"), "as_text": gettext("The graph as text")}


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit of a step, with its last outcome."""

    step: str
    outcome: str


def run_flow(run: WorkflowRun, definition: WorkflowDefinition, waits: Sequence[Wait]) -> RunFlow:
    """Return the flow of ``run``, with one query. ``waits``: what it waits for now."""
    graph = workflow_graph(definition)
    newest = list(
        run.steps.exclude(outcome__in=[*ACTIONS, StepExecution.ARRIVED])
        .order_by("-pk")
        .values_list("visit", "step", "outcome")[: MAX_VISITS + 1]
    )
    visits = {(visit, step): Visit(step, outcome) for visit, step, outcome in reversed(newest[:MAX_VISITS])}
    way = _Way(graph, outcomes_of(definition))
    way.follow(list(visits.values()), run, waits)
    return _drawn(way, is_cut=len(newest) > MAX_VISITS)


class _Way:
    """The marks and counts of the nodes and edges that a run has passed."""

    def __init__(self, graph: Graph, outcomes: dict[str, list[SourceOutcome]]) -> None:
        self.graph = graph
        self.outcomes = outcomes
        self.keys = {node.key for node in graph.nodes}
        self.known = {(edge.source, edge.target) for edge in graph.edges}
        self.marks: dict[str, Mark] = {}
        self.counts: Counter[str] = Counter()
        self.edges: dict[tuple[str, str], Mark] = {}

    def follow(self, visits: Sequence[Visit], run: WorkflowRun, waits: Sequence[Wait]) -> None:
        """Mark what the run has visited, where it is now, and where it may go next."""
        self._begin(visits, run)
        for visit, following in pairwise([*visits, None]):
            if visit is None:
                continue
            step = f"{STEP}{visit.step}"
            self.visit(step)
            if visit.outcome not in _PASSING:
                continue
            after = following.step if following is not None else run.current_step
            if visit.outcome in ("complete", "fail"):
                self._end(step, visit, following, run)
            elif following is not None:
                self._pass(step, self._outcome_node(visit, after, ()), after)
            elif (node := self._outcome_node(visit, after, waits)) is not None:
                self.visit(node)
                self.take(step, node)
            else:
                self._pass(step, None, after)
        if run.is_finished:
            if run.status == WorkflowStatus.FAILED and not self._has_ended():
                self.marks[f"{STEP}{run.current_step}"] = Mark.FAILED
        elif current := self._current(visits, run, waits):
            self.stand(current)

    def _begin(self, visits: Sequence[Visit], run: WorkflowRun) -> None:
        """Mark what has started the run."""
        starts = [node for node in self.graph.nodes if node.key.partition(":")[0] == START]
        name = "" if run.event is None else run.event.event_name.removeprefix(PREFIX)
        starts = [node for node in starts if (may_match(node.label, name) if name else node.key == START)]
        if len(starts) == 1:
            self.visit(starts[0].key)
            for edge in self.graph.leaving(starts[0].key) if visits or run.current_step else ():
                self.take(starts[0].key, edge.target)
                if edge.target.startswith("before:") and visits:
                    self.visit(edge.target)
                    self.take(edge.target, f"{STEP}{visits[0].step}")

    def _pass(self, source: str, between: str | None, after: str) -> None:
        """Mark the way from a step, through its wait or sleep, to the step ``after``."""
        if between is not None:
            self.visit(between)
            self.take(source, between)
            source = between
        before, target = f"before:{after}", f"{STEP}{after}"
        if (source, before) in self.known:
            self.visit(before)
            self.take(source, before)
            source = before
        self.take(source, target)

    def _end(self, step: str, visit: Visit, following: Visit | None, run: WorkflowRun) -> None:
        if following is not None:  # ``fail()`` has led to the path of ``@on_fail``
            self.take(step, f"{STEP}{following.step}")
        elif run.is_finished:
            self.visit(end_key(run.status))
            self.take(step, end_key(run.status))

    def _has_ended(self) -> bool:
        return any(key.startswith("end:") for key in self.counts)

    def _current(self, visits: Sequence[Visit], run: WorkflowRun, waits: Sequence[Wait]) -> str:
        """Return the node where the run is now."""
        step = run.current_step
        is_waiting = run.status in (WorkflowStatus.SUSPENDED, WorkflowStatus.WAITING, WorkflowStatus.PARKED)
        last = visits[-1] if visits else None
        has_entered = last is not None and last.step == step and last.outcome in _PASSING and last.outcome != "goto"
        if run.status == WorkflowStatus.SUSPENDED and f"before:{step}" in self.keys and not has_entered:
            return f"before:{step}"
        is_asleep = last is not None and last.outcome == "sleep" and not run.lease  # it is at its next step already
        if is_waiting and last is not None and (is_asleep or (last.step == step and last.outcome in _PASSING)):
            return self._outcome_node(last, step, waits) or f"{STEP}{step}"
        return f"{STEP}{step}" if step else ""

    def _outcome_node(self, visit: Visit, after: str, waits: Sequence[Wait]) -> str | None:
        """Return the node of the wait, sleep, child or choice with which a visit has ended, if it has one."""
        found: list[tuple[str, SourceOutcome]] = []
        for number, outcome in enumerate(self.outcomes.get(visit.step, ())):
            name = "wait" if outcome.kind in _SIGNALS_AND_EVENTS else outcome.kind.value
            key = outcome_key(visit.step, number)
            if name == visit.outcome and key in self.keys:
                found.append((key, outcome))
        channels = {wait.channel for wait in waits}
        for key, outcome in found:
            if {outcome.subject, f"event:{outcome.subject}"} & channels:
                return key
        for key, _ in found:
            if (key, f"{STEP}{after}") in self.known or (key, f"before:{after}") in self.known:
                return key
        return found[0][0] if found else None

    def visit(self, key: str) -> None:
        self.counts[key] += 1
        self.marks[key] = Mark.VISITED

    def take(self, source: str, target: str) -> None:
        self.edges[source, target] = Mark.VISITED

    def stand(self, key: str) -> None:
        """Mark a node as the current one, and where the run may go from there."""
        self.marks[key] = Mark.CURRENT
        for edge in self.graph.leaving(key):
            self.edges[key, edge.target] = Mark.NEXT
            self.marks.setdefault(edge.target, Mark.NEXT)


def agent_flow(run: AgentRun) -> RunFlow | None:
    """Return the flow of an agent, with one query: which handlers have handled events, and which have work now.

    None: this code no longer has the agent.
    """
    definition = registered_agent(run.name)
    if definition is None:
        return None
    graph = agent_graph(definition)
    way = _Way(graph, {})
    executions = run.executions.order_by("-pk").values_list("handler", "status", "event__event_name")
    newest = list(executions[: MAX_VISITS + 1])
    spawns = [node.key for node in graph.nodes if node.kind == NodeKind.START]
    if run.event is not None:
        names = {node.key: node.label for node in graph.nodes}
        spawns = [key for key in spawns if may_match(names[key], run.event.event_name)]
    for key in spawns if len(spawns) == 1 else ():
        way.visit(key)
        way.take(key, AGENT)
    way.visit(AGENT)
    way.counts.clear()
    for handler, status, event_name in newest[:MAX_VISITS]:
        key = f"handler:{handler}"
        edges = [edge for edge in graph.edges if edge.target == key and may_match(_name(edge.source), event_name)]
        if key not in way.keys or not edges:
            continue
        source = edges[0].source
        if status in (HandlerStatus.COMPLETED, HandlerStatus.FAILED):
            way.counts[key] += 1
            way.counts[source] += 1
            way.take(AGENT, source)
            way.take(source, key)
            way.marks.setdefault(source, Mark.VISITED)
            way.marks.setdefault(key, Mark.FAILED if status == HandlerStatus.FAILED else Mark.VISITED)
        elif status in (HandlerStatus.PENDING, HandlerStatus.WAITING, HandlerStatus.PARKED):
            way.marks[key] = Mark.CURRENT
            way.edges.setdefault((source, key), Mark.NEXT)
    if run.status in (AgentStatus.COMPLETED, AgentStatus.CANCELLED) and end_key(run.status) in way.keys:
        way.marks[end_key(run.status)] = Mark.VISITED
    return _drawn(way, is_cut=len(newest) > MAX_VISITS)


def _name(key: str) -> str:
    return key.partition(":")[2]


def _drawn(way: _Way, *, is_cut: bool) -> RunFlow:
    graph = way.graph.marked(way.marks, way.counts, way.edges)
    notes = list(graph.notes)
    if is_cut:
        notes.append(gettext("The counts are of the newest %s attempts.") % f"{MAX_VISITS:,}")
    # The text in it is escaped by ``svg``.
    return RunFlow(mark_safe(svg(graph)), [*_lines(graph), *graph.sentences()], notes)


def _lines(graph: Graph) -> Iterable[str]:
    """Yield in words what is marked."""
    visited = [f"{node.label} ({node.count})" for node in graph.nodes if node.count]
    if visited:
        yield gettext("Visited: %s") % ", ".join(visited)
    for mark, text in (
        (Mark.CURRENT, gettext("Now at: %s")),
        (Mark.FAILED, gettext("Failed at: %s")),
    ):
        labels = [node.label for node in graph.nodes if node.mark == mark]
        if labels:
            yield text % ", ".join(labels)
    following = [edge.target for edge in graph.edges if edge.mark == Mark.NEXT]
    labels = [node.label for node in graph.nodes if node.key in following]
    if labels:
        yield gettext("May go to: %s") % ", ".join(labels)
