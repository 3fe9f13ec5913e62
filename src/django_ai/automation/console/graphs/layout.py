"""Places the nodes of a graph in layers, from top to bottom (the method of Sugiyama, Tagawa and Toda, 1981).

Own code, because workflows have ten nodes and not ten thousand, and a drawing on the server needs no browser: of the
libraries for Python, grandalf has had no release since 2023 and no types, networkx leaves layers to Graphviz, pydot
and graphviz call its program, and fast-sugiyama is compiled. The steps are those of dagre: edges that close a circle
are turned round, every node gets a rank, long edges and labels get places of their own in the ranks between, each rank
is ordered by the places of its neighbours, and is then moved as near to them as the distances allow (isotonic
regression), so that chains are straight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP_ACROSS = 28.0
GAP_BETWEEN_RANKS = 30.0
PASSES = 12


@dataclass(frozen=True, slots=True)
class Size:
    """The width and height of a node or a label."""

    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Line:
    """An edge to place: from one key to another, with the size of its label or None."""

    source: str
    target: str
    label: Size | None = None


@dataclass(slots=True)
class Placed:
    """Where everything is: the centres of nodes, and for each line its bends and the centre of its label."""

    width: float
    height: float
    nodes: dict[str, tuple[float, float]]
    lines: list[list[tuple[float, float]]]
    labels: list[tuple[float, float] | None]


@dataclass(slots=True)
class _Box:
    """A node, a bend or a label in a rank."""

    size: Size
    rank: int = 0
    x: float = 0.0
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)
    is_bend: bool = True


def place(sizes: Mapping[str, Size], lines: Sequence[Line]) -> Placed:
    """Return where to draw nodes of these sizes and the lines between them. A line from a node to itself has no
    bends; the node needs room for it at its right."""
    keys = list(sizes)
    index = {key: number for number, key in enumerate(keys)}
    boxes = [_Box(sizes[key], is_bend=False) for key in keys]
    turned = _turned(keys, lines)
    ends = [
        (index[each.target], index[each.source]) if turned[number] else (index[each.source], index[each.target])
        for number, each in enumerate(lines)
    ]
    # A label needs a rank of its own, and so does a turned line: the line in the other direction is straight.
    lengths = [2 if each.label is not None or turned[number] else 1 for number, each in enumerate(lines)]
    real = [number for number, each in enumerate(lines) if each.source != each.target]
    _rank(boxes, [(*ends[number], lengths[number]) for number in real])
    bends, labels = _add_bends(boxes, lines, ends, real)
    ranks = _ordered(boxes)
    _move(boxes, ranks)
    heights = [max((boxes[each].size.height for each in rank), default=0.0) for rank in ranks]
    tops, y = [], 0.0
    for height in heights:
        tops.append(y + height / 2)
        y += height + GAP_BETWEEN_RANKS
    left = min((each.x - each.size.width / 2 for each in boxes), default=0.0)
    right = max((each.x + each.size.width / 2 for each in boxes), default=0.0)

    def at(number: int) -> tuple[float, float]:
        return boxes[number].x - left, tops[boxes[number].rank]

    return Placed(
        width=right - left,
        height=max(y - GAP_BETWEEN_RANKS, 0.0),
        nodes={key: at(index[key]) for key in keys},
        lines=[
            [at(each) for each in (reversed(bends[number]) if turned[number] else bends[number])]
            for number in range(len(lines))
        ],
        labels=[None if each is None else at(each) for each in labels],
    )


def _turned(keys: Sequence[str], lines: Sequence[Line]) -> list[bool]:
    """Return which lines close a circle, seen from the first nodes: they lead back to a node on the way to them."""
    leaving: dict[str, list[int]] = {key: [] for key in keys}
    for number, line in enumerate(lines):
        if line.source != line.target:
            leaving[line.source].append(number)
    turned, seen = [False] * len(lines), set[str]()
    for key in keys:
        if key in seen:
            continue
        seen.add(key)
        way, ahead = {key}, [(key, iter(leaving[key]))]
        while ahead:
            current, rest = ahead[-1]
            following = next(rest, None)
            if following is None:
                ahead.pop()
                way.discard(current)
            elif (target := lines[following].target) in way:
                turned[following] = True
            elif target not in seen:
                seen.add(target)
                way.add(target)
                ahead.append((target, iter(leaving[target])))
    return turned


def _rank(boxes: list[_Box], ends: Sequence[tuple[int, int, int]]) -> None:
    """Give each node the lowest rank that its lines allow; then move nodes without predecessors down to what follows
    them."""
    for _ in boxes:
        moved = False
        for source, target, length in ends:
            if boxes[target].rank < boxes[source].rank + length:
                boxes[target].rank = boxes[source].rank + length
                moved = True
        if not moved:
            break
    targets = {target for _, target, _ in ends}
    for number, box in enumerate(boxes):
        after = [boxes[target].rank - length for source, target, length in ends if source == number]
        if number not in targets and after:
            box.rank = min(after)


def _add_bends(
    boxes: list[_Box], lines: Sequence[Line], ends: Sequence[tuple[int, int]], real: Sequence[int]
) -> tuple[list[list[int]], list[int | None]]:
    """Add a bend for each rank that a line crosses; the middle one holds its label."""
    bends: list[list[int]] = [[] for _ in lines]
    labels: list[int | None] = [None] * len(lines)
    for number in real:
        source, target = ends[number]
        first, last = boxes[source].rank + 1, boxes[target].rank
        middle, label = (first + last - 1) // 2, lines[number].label
        previous = source
        for rank in range(first, last):
            is_label = label is not None and rank == middle
            boxes.append(_Box(label if is_label and label is not None else Size(8.0, 0.0), rank))
            new = len(boxes) - 1
            bends[number].append(new)
            if is_label:
                labels[number] = new
            boxes[previous].below.append(new)
            boxes[new].above.append(previous)
            previous = new
        boxes[previous].below.append(target)
        boxes[target].above.append(previous)
    return bends, labels


def _ordered(boxes: list[_Box]) -> list[list[int]]:
    """Return the boxes of each rank from left to right, so that few lines cross."""
    ranks: list[list[int]] = [[] for _ in range(max((each.rank for each in boxes), default=-1) + 1)]
    for number, box in enumerate(boxes):
        ranks[box.rank].append(number)
    best, fewest = [list(each) for each in ranks], _crossings(boxes, ranks)
    for turn in range(PASSES):
        is_down = turn % 2 == 0
        for rank in ranks[1:] if is_down else ranks[-2::-1]:
            places = {each: place for row in ranks for place, each in enumerate(row)}
            wanted = {}
            for place, each in enumerate(rank):
                near = boxes[each].above if is_down else boxes[each].below
                wanted[each] = sum(places[one] for one in near) / len(near) if near else float(place)
            rank.sort(key=wanted.__getitem__)
        crossings = _crossings(boxes, ranks)
        if crossings < fewest:
            best, fewest = [list(each) for each in ranks], crossings
    return best


def _crossings(boxes: list[_Box], ranks: list[list[int]]) -> int:
    count = 0
    for upper, lower in pairwise(ranks):
        places = {each: place for place, each in enumerate(lower)}
        pairs = [(number, places[below]) for number, each in enumerate(upper) for below in boxes[each].below]
        for number, (one, end) in enumerate(pairs):
            count += sum(1 for other, its in pairs[number + 1 :] if (one - other) * (end - its) < 0)
    return count


def _move(boxes: list[_Box], ranks: list[list[int]]) -> None:
    """Move the boxes of each rank towards the middle of their neighbours, keeping order and distances."""
    for rank in ranks:
        x = 0.0
        for each in rank:
            boxes[each].x = x + boxes[each].size.width / 2
            x += boxes[each].size.width + GAP_ACROSS
    for turn in range(2 * PASSES):
        is_down = turn % 2 == 0
        for rank in ranks[1:] if is_down else ranks[-2::-1]:
            wanted, weights = [], []
            for each in rank:
                box = boxes[each]
                near = box.above if is_down else box.below
                near = near or [each]
                wanted.append(sum(boxes[one].x for one in near) / len(near))
                weights.append(4.0 if box.is_bend and all(boxes[one].is_bend for one in near) else 1.0)
            gaps = [(boxes[one].size.width + boxes[other].size.width) / 2 + GAP_ACROSS for one, other in pairwise(rank)]
            for each, x in zip(rank, _spread(wanted, weights, gaps), strict=True):
                boxes[each].x = x


def _spread(wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Return the places nearest to ``wanted`` (least squares) that keep the ``gaps``: pool adjacent violators."""
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    pools: list[tuple[float, float, int]] = []  # the mean, the weight and the number of members
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, total, size = want - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, its, count = pools.pop()
            mean, total, size = (mean * total + other * its) / (total + its), total + its, size + count
        pools.append((mean, total, size))
    means = [mean for mean, _, size in pools for _ in range(size)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
