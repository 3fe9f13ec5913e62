"""Draws a graph as text of Mermaid, which documentation and code hosts draw."""

from __future__ import annotations

from .model import EdgeKind, Graph, Mark, NodeKind

_SHAPES = {
    NodeKind.START: ("([", "])"),
    NodeKind.SLEEP: ("([", "])"),
    NodeKind.SIGNAL: ("{{", "}}"),
    NodeKind.EVENT: ("{{", "}}"),
    NodeKind.CHOICE: ("{", "}"),
    NodeKind.CHILD: ("[[", "]]"),
    NodeKind.WORKFLOW: ("[[", "]]"),
    NodeKind.AGENT: ("[[", "]]"),
    NodeKind.END: ("([", "])"),
}
_ARROWS = {
    EdgeKind.NORMAL: "-->",
    EdgeKind.TIMEOUT: "-.->",
    EdgeKind.FAILURE: "-.->",
    EdgeKind.UNKNOWN: "-.->",
}
_CLASSES = (
    "classDef unknown stroke-dasharray: 4 3",
    "classDef hook stroke-dasharray: 4 3",
    "classDef visited stroke-width: 3px",
    "classDef current stroke-width: 5px",
)


def mermaid(graph: Graph) -> str:
    """Return ``graph`` as a flowchart of Mermaid. It ends with a newline; the notes are comments at its end."""
    keys = {node.key: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = [f"%% {_comment(graph.title)}", "flowchart TD"]
    for node in graph.nodes:
        opening, closing = _SHAPES.get(node.kind, ("[", "]"))
        text = _escaped(node.label)
        if node.detail:
            text += f"<br>{_escaped(node.detail)}"
        if node.count > 1:
            text += f" ({node.count} times)"
        lines.append(f'    {keys[node.key]}{opening}"{text}"{closing}')
    for edge in graph.edges:
        label = f'|"{_escaped(edge.label)}"|' if edge.label else ""
        lines.append(f"    {keys[edge.source]} {_ARROWS[edge.kind]}{label} {keys[edge.target]}")
    marked = {
        **{keys[node.key]: node.kind.value for node in graph.nodes if node.kind in (NodeKind.UNKNOWN, NodeKind.HOOK)},
        **{keys[node.key]: node.mark.value for node in graph.nodes if node.mark in (Mark.VISITED, Mark.CURRENT)},
    }
    lines += [f"    {each}" for each in _CLASSES if each.split()[1] in marked.values()]
    lines += [f"    class {key} {name}" for key, name in marked.items()]
    lines += [f"%% {_comment(note)}" for note in graph.notes]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return " ".join(text.replace("{", "(").replace("}", ")").split())  # braces would begin a directive


def _escaped(text: str) -> str:
    """Return text for a quoted label: what has a meaning to Mermaid becomes an entity."""
    cleaned = " ".join(text.split())
    return "".join(f"#{ord(each)};" if each in '"#<>&`\\' else each for each in cleaned)
