"""Graphs of what code declares: a workflow, an agent, an event. They are drawn as text of Mermaid or
Graphviz, or as SVG.

``graph_named`` finds one by its name; ``mermaid``, ``dot`` and ``svg`` draw it. What a step may return is read in its
source (``workflows/source_outcomes.py``), so a graph shows what may happen, and says where only the running code
decides.
"""

from __future__ import annotations

from .dot import dot
from .find import KINDS, graph_named, graph_names
from .mermaid import mermaid
from .model import Edge, EdgeKind, Graph, Mark, Node, NodeKind
from .svg import svg

__all__ = [
    "KINDS",
    "Edge",
    "EdgeKind",
    "Graph",
    "Mark",
    "Node",
    "NodeKind",
    "dot",
    "graph_named",
    "graph_names",
    "mermaid",
    "svg",
]
