"""Draws a graph as text of Graphviz, which many editors and tools read."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from .model import Edge, EdgeKind, Graph, Mark, Node, NodeKind

_BOX = {"shape": "box"}
_ROUND = {"shape": "box", "style": "rounded"}
_HEXAGON = {"shape": "hexagon"}
_DOUBLE = {"shape": "box", "peripheries": "2"}
_SHAPES = {
    NodeKind.START: _ROUND,
    NodeKind.SLEEP: _ROUND,
    NodeKind.SIGNAL: _HEXAGON,
    NodeKind.EVENT: _HEXAGON,
    NodeKind.CHOICE: {"shape": "diamond"},
    NodeKind.CHILD: _DOUBLE,
    NodeKind.WORKFLOW: _DOUBLE,
    NodeKind.AGENT: _DOUBLE,
    NodeKind.END: _ROUND,
    NodeKind.HOOK: {"shape": "box", "style": "dashed"},
    NodeKind.UNKNOWN: {"shape": "box", "style": "dashed"},
}
_WIDTHS = {Mark.VISITED: "3", Mark.CURRENT: "5"}


def dot(graph: Graph) -> str:
    """Return ``graph`` in the DOT language of Graphviz. It ends with a newline; the notes are comments at its end.

    Every string is quoted, so names need not be identifiers. Write it to a file as UTF-8, and ``dot -Tsvg`` draws it.
    """
    keys = {node.key: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = [
        "digraph {",
        f"    graph {_attributes({'label': _escaped(graph.title), 'labelloc': 't', 'charset': 'UTF-8'})}",
        *(f"    {keys[node.key]} {_attributes(_of_node(node))}" for node in graph.nodes),
        *(f"    {keys[edge.source]} -> {keys[edge.target]}{_line(edge)}" for edge in graph.edges),
        "}",
        *(f"// {_cleaned(note)}" for note in graph.notes),
    ]
    return "\n".join(lines) + "\n"


def _of_node(node: Node) -> dict[str, str]:
    label = _escaped(node.label)
    if node.detail:
        label += rf"\n{_escaped(node.detail)}"
    if node.count > 1:
        label += f" ({node.count} times)"
    width = {"penwidth": _WIDTHS[node.mark]} if node.mark in _WIDTHS else {}
    return {"label": label, **_SHAPES.get(node.kind, _BOX), **width}


def _line(edge: Edge) -> str:
    attributes = {}
    if edge.label:
        attributes["label"] = _escaped(edge.label)
    if edge.kind is not EdgeKind.NORMAL:
        attributes["style"] = "dashed"
    return f" {_attributes(attributes)}" if attributes else ""


def _attributes(values: Mapping[str, str]) -> str:
    return "[" + ", ".join(f'{name}="{value}"' for name, value in values.items()) + "]"


def _escaped(text: str) -> str:
    r"""Return text for a quoted label. There a backslash begins ``\n``, the end of a line, and ``\N``, the name of the
    node, and ``&`` begins an entity of HTML."""
    return _cleaned(text).replace("\\", r"\\").replace('"', r"\"").replace("&", "&amp;")


def _cleaned(text: str) -> str:
    """Return text in one line, without control characters, and with a mark for what UTF-8 cannot encode."""
    line = " ".join(text.split())
    kept = "".join(each for each in line if unicodedata.category(each) != "Cc")
    return kept.encode("utf-8", "replace").decode("utf-8")
