"""``Graph``: nodes and edges with their labels, and what a run has done with them. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class NodeKind(StrEnum):
    """What a node stands for: its shape and its class in the drawing."""

    START = "start"
    STEP = "step"
    HOOK = "hook"
    SLEEP = "sleep"
    SIGNAL = "signal"
    EVENT = "event"
    CHOICE = "choice"
    CHILD = "child"
    END = "end"
    UNKNOWN = "unknown"
    AGENT = "agent"
    HANDLER = "handler"
    CALLBACK = "callback"
    WORKFLOW = "workflow"


class EdgeKind(StrEnum):
    """How one node follows another."""

    NORMAL = "normal"
    TIMEOUT = "timeout"
    FAILURE = "failure"
    UNKNOWN = "unknown"


class Mark(StrEnum):
    """What a run has to do with a node or an edge."""

    NONE = ""
    VISITED = "visited"
    CURRENT = "current"
    NEXT = "next"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Node:
    """A node. ``key``: unique in its graph. ``detail``: a second line. ``count``: how often a run was there."""

    key: str
    kind: NodeKind
    label: str
    detail: str = ""
    mark: Mark = Mark.NONE
    count: int = 0


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge between the nodes with the keys ``source`` and ``target``."""

    source: str
    target: str
    label: str = ""
    kind: EdgeKind = EdgeKind.NORMAL
    mark: Mark = Mark.NONE


@dataclass(frozen=True, slots=True)
class Graph:
    """A directed graph. ``notes``: sentences about what it cannot show, such as a step that only the code decides."""

    name: str
    title: str
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    notes: tuple[str, ...] = ()

    def node(self, key: str) -> Node | None:
        return next((each for each in self.nodes if each.key == key), None)

    def leaving(self, key: str) -> list[Edge]:
        """Return the edges that leave a node."""
        return [each for each in self.edges if each.source == key]

    def sentences(self) -> list[str]:
        """Return each edge in words: what the drawing shows, for those who do not see it."""
        labels = {each.key: " ".join(filter(None, (each.label, each.detail))) for each in self.nodes}
        return [
            f"{labels[each.source]} → {labels[each.target]}{f' ({each.label})' if each.label else ''}"
            for each in self.edges
        ]

    def marked(
        self, marks: Mapping[str, Mark], counts: Mapping[str, int], edges: Mapping[tuple[str, str], Mark]
    ) -> Graph:
        """Return the same graph with the marks and counts of nodes by their keys, and of edges by both keys."""
        nodes = (
            replace(each, mark=marks.get(each.key, Mark.NONE), count=counts.get(each.key, 0)) for each in self.nodes
        )
        lines = (replace(each, mark=edges.get((each.source, each.target), Mark.NONE)) for each in self.edges)
        return replace(self, nodes=tuple(nodes), edges=tuple(lines))


@dataclass(slots=True)
class GraphBuilder:
    """Collects nodes and edges. A node that is added twice, and an edge between the same nodes, are kept once."""

    name: str
    title: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str, EdgeKind], Edge] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def node(self, key: str, kind: NodeKind, label: str, detail: str = "") -> str:
        """Add a node unless there is one with this key. Return its key."""
        self.nodes.setdefault(key, Node(key, kind, label, detail))
        return key

    def edge(self, source: str, target: str, label: str = "", kind: EdgeKind = EdgeKind.NORMAL) -> None:
        """Add an edge; the labels of equal edges are joined."""
        known = self.edges.get((source, target, kind))
        if known is not None:
            labels = list(dict.fromkeys(filter(None, (*known.label.split(", "), label))))
            label = ", ".join(labels)
        self.edges[source, target, kind] = Edge(source, target, label, kind)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def graph(self) -> Graph:
        return Graph(self.name, self.title, tuple(self.nodes.values()), tuple(self.edges.values()), tuple(self.notes))
