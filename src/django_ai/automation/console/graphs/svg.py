"""Draws a graph as SVG: shapes with classes, which the stylesheet ``graph.css`` colours, in light and dark.

It has no inline style and no script. Its title and its description say what it shows to those who do not see it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

from django.utils.translation import gettext

from .layout import Line, Placed, Size, place
from .model import Edge, Graph, Mark, Node, NodeKind

LINE_HEIGHT = 17.0
DETAIL_HEIGHT = 14.0
PADDING = 12.0
MARGIN = 12.0
MAX_LINE = 190.0
MAX_LINES = 3
LOOP_ROOM = 34.0
HEAD = 7.0

STYLESHEET = Path(__file__).parent.parent / "static" / "automation_console" / "graph.css"
_NARROW, _WIDE = set("fijlrtI.,:;'|!()[] "), set("mwMW@%ABCDEFGHJKLNOPQRSTUVXYZ→")
_BREAKS = re.compile(r"(?<=[\s_.:/,;-])")


def svg(graph: Graph, *, id_prefix: str = "automation-graph", is_alone: bool = False) -> str:
    """Return ``graph`` as an SVG element.

    Args:
        graph: What to draw.
        id_prefix: The first part of the ids of its title and description: unique on the page.
        is_alone: For a file of its own: it then has a name space, and brings the stylesheet along.
    """
    drawn = _Drawing(graph)
    width, height = drawn.placed.width + 2 * MARGIN, drawn.placed.height + 2 * MARGIN
    title, description = f"{id_prefix}-title", f"{id_prefix}-desc"
    space = ' xmlns="http://www.w3.org/2000/svg"' if is_alone else ""
    parts = [
        f'<svg{space} class="automation-graph" role="img" aria-labelledby="{title} {description}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">',
        f'<title id="{title}">{escape(graph.title)}</title>',
        f'<desc id="{description}">{escape("; ".join(graph.sentences()))}</desc>',
    ]
    if is_alone:
        parts.append(f"<style>{escape(STYLESHEET.read_text(encoding='utf-8'))}</style>")
    parts.append(f'<g transform="translate({MARGIN:.0f} {MARGIN:.0f})">')
    parts += [drawn.edge(number) for number in range(len(graph.edges))]
    parts += [drawn.node(each) for each in graph.nodes]
    parts += [drawn.label(number) for number in range(len(graph.edges))]
    return "".join([*parts, "</g></svg>"])


class _Drawing:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.texts = {each.key: _texts_of(each) for each in graph.nodes}
        self.loops = {each.source for each in graph.edges if each.source == each.target}
        self.sizes = {each.key: _size_of(each, *self.texts[each.key]) for each in graph.nodes}
        self.labels = [_wrapped(each.label) if each.label else [] for each in graph.edges]
        room = {
            key: Size(size.width + 2 * LOOP_ROOM, size.height) if key in self.loops else size
            for key, size in self.sizes.items()
        }
        lines = [
            Line(each.source, each.target, _label_size(label) if label and each.source != each.target else None)
            for each, label in zip(graph.edges, self.labels, strict=True)
        ]
        self.placed: Placed = place(room, lines)

    def node(self, node: Node) -> str:
        x, y = self.placed.nodes[node.key]
        size = self.sizes[node.key]
        lines, details = self.texts[node.key]
        classes = f"node node-{node.kind.value}{f' is-{node.mark.value}' if node.mark else ''}"
        top = y - (len(lines) * LINE_HEIGHT + len(details) * DETAIL_HEIGHT) / 2
        texts = []
        for number, line in enumerate(lines):
            texts.append(_text("label", x, top + (number + 0.75) * LINE_HEIGHT, line))
        top += len(lines) * LINE_HEIGHT
        for number, line in enumerate(details):
            texts.append(_text("detail", x, top + (number + 0.75) * DETAIL_HEIGHT, line))
        if node.count:
            shown = f"{node.count} \u00d7" if node.count < 1000 else "999+ \u00d7"
            texts.append(_text("count", x + size.width / 2 - 2, y - size.height / 2 + 3, shown))
        full = " ".join(filter(None, (node.label, node.detail, _mark_words(node))))
        return f'<g class="{classes}"><title>{escape(full)}</title>{_shape(node.kind, x, y, size)}{"".join(texts)}</g>'

    def edge(self, number: int) -> str:
        edge = self.graph.edges[number]
        if edge.source == edge.target:
            return self._loop(edge)
        (x1, y1), (x2, y2) = self.placed.nodes[edge.source], self.placed.nodes[edge.target]
        is_down = y2 > y1
        sign = 1.0 if is_down else -1.0
        bends = self.placed.lines[number]
        first, last = self.sizes[edge.source], self.sizes[edge.target]
        start = (_port(x1, (bends[0] if bends else (x2, y2))[0], first), y1 + sign * first.height / 2)
        end = (_port(x2, (bends[-1] if bends else (x1, y1))[0], last), y2 - sign * last.height / 2)
        points = [start, *bends, (end[0], end[1] - sign * HEAD)]
        path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
        for (ax, ay), (bx, by) in pairwise(points):
            middle = (ay + by) / 2
            path.append(f"C{ax:.1f} {middle:.1f} {bx:.1f} {middle:.1f} {bx:.1f} {by:.1f}")
        x, y = end
        head = f"M{x:.1f} {y:.1f}l-4.5 {-sign * HEAD:.1f}h9z"
        return _drawn_edge(edge, "".join(path), head)

    def _loop(self, edge: Edge) -> str:
        x, y = self.placed.nodes[edge.source]
        size = self.sizes[edge.source]
        right, half = x + size.width / 2, size.height / 4
        path = (
            f"M{right:.1f} {y - half:.1f}C{right + LOOP_ROOM:.1f} {y - 3 * half:.1f} "
            f"{right + LOOP_ROOM:.1f} {y + 3 * half:.1f} {right + HEAD:.1f} {y + half:.1f}"
        )
        head = f"M{right:.1f} {y + half:.1f}l{HEAD:.1f} -4.5v9z"
        return _drawn_edge(edge, path, head)

    def label(self, number: int) -> str:
        at, lines = self.placed.labels[number], self.labels[number]
        if at is None or not lines:
            return ""
        size = _label_size(lines)
        x, top = at[0], at[1] - size.height / 2
        back = (
            f'<rect class="label-back" x="{x - size.width / 2:.1f}" y="{top:.1f}" '
            f'width="{size.width:.1f}" height="{size.height:.1f}"/>'
        )
        texts = "".join(
            _text("edge-label", x, top + (row + 0.8) * DETAIL_HEIGHT, line) for row, line in enumerate(lines)
        )
        full = f"<title>{escape(self.graph.edges[number].label)}</title>"
        return f'<g class="{_classes(self.graph.edges[number])}">{full}{back}{texts}</g>'


def _drawn_edge(edge: Edge, path: str, head: str) -> str:
    return f'<g class="{_classes(edge)}"><path class="line" d="{path}"/><path class="head" d="{head}"/></g>'


def _port(x: float, other: float, size: Size) -> float:
    """Return where a line leaves or enters a node: moved a little towards where it comes from or goes to."""
    room = max(size.width / 2 - 14, 0.0)
    return x + max(-room, min(room, (other - x) * 0.3))


def _classes(edge: Edge) -> str:
    return f"edge edge-{edge.kind.value}{f' is-{edge.mark.value}' if edge.mark else ''}"


def _mark_words(node: Node) -> str:
    words = {
        Mark.VISITED: gettext("visited"),
        Mark.CURRENT: gettext("current"),
        Mark.NEXT: gettext("possible next"),
        Mark.FAILED: gettext("failed"),
    }
    count = "" if not node.count else gettext("times: %s") % node.count
    found = ", ".join(filter(None, (words.get(node.mark, ""), count)))
    return f"({found})" if found else ""


def _text(kind: str, x: float, y: float, text: str) -> str:
    anchor = "end" if kind == "count" else "middle"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _shape(kind: NodeKind, x: float, y: float, size: Size) -> str:
    w, h = size.width, size.height
    left, right, top, bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
    cut = min(h / 2, PADDING)
    if kind == NodeKind.CHOICE:
        cut /= 2
    upper, lower = [(left + cut, top), (right - cut, top)], [(right - cut, bottom), (left + cut, bottom)]
    if kind in (NodeKind.SIGNAL, NodeKind.EVENT):
        return _polygon([*upper, (right, y), *lower, (left, y)])
    if kind == NodeKind.CHOICE:
        sides = (right, top + cut), (right, bottom - cut), (left, bottom - cut), (left, top + cut)
        return _polygon([*upper, *sides[:2], *lower, *sides[2:]])
    radius = h / 2 if kind in (NodeKind.START, NodeKind.END, NodeKind.SLEEP) else 5.0
    box = f'x="{left:.1f}" y="{top:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{min(radius, 20.0):.1f}"'
    shape = f'<rect class="shape" {box}/>'
    if kind in (NodeKind.CHILD, NodeKind.WORKFLOW, NodeKind.AGENT):
        shape += f'<path class="bar" d="M{left + 6:.1f} {top:.1f}v{h:.1f}M{right - 6:.1f} {top:.1f}v{h:.1f}"/>'
    return shape


def _polygon(points: Sequence[tuple[float, float]]) -> str:
    return f'<polygon class="shape" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _texts_of(node: Node) -> tuple[list[str], list[str]]:
    return _wrapped(node.label), _wrapped(node.detail) if node.detail else []


def _size_of(node: Node, lines: Sequence[str], details: Sequence[str]) -> Size:
    width = max([_width(each) for each in lines] + [0.87 * _width(each) for each in details])
    sides = 2 * PADDING + (10 if node.kind in (NodeKind.SIGNAL, NodeKind.EVENT, NodeKind.CHILD) else 0)
    height = len(lines) * LINE_HEIGHT + len(details) * DETAIL_HEIGHT + PADDING
    return Size(max(width + sides, 56.0), height)


def _label_size(lines: Sequence[str]) -> Size:
    return Size(max(0.87 * _width(each) for each in lines) + 8, len(lines) * DETAIL_HEIGHT + 2)


def _width(text: str) -> float:
    """Return about how wide a text is: a server knows no fonts, so a little too much."""
    return sum(map(_width_of, text))


def _width_of(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 14.0
    return 4.4 if character in _NARROW else 10.0 if character in _WIDE else 7.6


def _wrapped(text: str) -> list[str]:
    """Return a text in lines of at most ``MAX_LINE``, broken after spaces and punctuation where it can be."""
    lines, line = [], ""
    for part in _BREAKS.split(text):
        if line and _width(line + part) > MAX_LINE:
            lines.append(line.rstrip())
            line = ""
        line += part
        while _width(line) > MAX_LINE:
            fits = next(count for count in range(len(line), 0, -1) if _width(line[:count]) <= MAX_LINE)
            lines.append(line[:fits])
            line = line[fits:]
    lines.append(line.rstrip())
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1][:-1]}…"]
    return lines or [""]
