"""Graphs of agents, events and schedules, and how they are drawn: Mermaid, Graphviz, SVG and places of nodes."""

from __future__ import annotations

import random
import re
from datetime import timedelta
from itertools import combinations
from xml.etree import ElementTree

import pytest
from django.utils import translation
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    FreeEvent,
    agent,
    complete,
    goto,
    handler,
    on_event,
    schedule,
    step,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.console.graphs import (
    Edge,
    EdgeKind,
    Graph,
    Mark,
    Node,
    NodeKind,
    dot,
    graph_named,
    graph_names,
    mermaid,
    svg,
)
from django_ai.automation.console.graphs.layout import GAP_ACROSS, Line, Size, place
from django_ai.automation.exceptions import UnknownDefinitionError, UnknownWorkflowError
from django_ai.automation.workflows.outcomes import wait_for_event
from tests.support.agents import of_guest

SPACE = "{http://www.w3.org/2000/svg}"

SMALL = Graph(
    "small",
    'Small "one" <1> {x}',
    (
        Node("a", NodeKind.START, "begin", mark=Mark.VISITED, count=1),
        Node("b", NodeKind.STEP, 'a "b" <c> & #d', "with detail", Mark.CURRENT, 1200),
        Node("c", NodeKind.UNKNOWN, "?"),
        Node("d", NodeKind.END, "Completed", mark=Mark.NEXT),
    ),
    (
        Edge("a", "b", mark=Mark.VISITED),
        Edge("b", "b", "again"),
        Edge("b", "c", "after 3 d", EdgeKind.TIMEOUT),
        Edge("b", "d", mark=Mark.NEXT),
        Edge("c", "a"),
    ),
    ("A note with {braces}.",),
)


def test_mermaid_is_a_flowchart_with_escaped_labels():
    assert mermaid(SMALL) == (
        '%% Small "one" <1> (x)\n'
        "flowchart TD\n"
        '    n0(["begin"])\n'
        '    n1["a #34;b#34; #60;c#62; #38; #35;d<br>with detail (1200 times)"]\n'
        '    n2["?"]\n'
        '    n3(["Completed"])\n'
        "    n0 --> n1\n"
        '    n1 -->|"again"| n1\n'
        '    n1 -.->|"after 3 d"| n2\n'
        "    n1 --> n3\n"
        "    n2 --> n0\n"
        "    classDef unknown stroke-dasharray: 4 3\n"
        "    classDef visited stroke-width: 3px\n"
        "    classDef current stroke-width: 5px\n"
        "    class n2 unknown\n"
        "    class n0 visited\n"
        "    class n1 current\n"
        "%% A note with (braces).\n"
    )


def test_dot_is_a_directed_graph_with_quoted_labels():
    assert dot(SMALL) == (
        "digraph {\n"
        r'    graph [label="Small \"one\" <1> {x}", labelloc="t", charset="UTF-8"]'
        "\n"
        '    n0 [label="begin", shape="box", style="rounded", penwidth="3"]\n'
        r'    n1 [label="a \"b\" <c> &amp; #d\nwith detail (1200 times)", shape="box", penwidth="5"]'
        "\n"
        '    n2 [label="?", shape="box", style="dashed"]\n'
        '    n3 [label="Completed", shape="box", style="rounded"]\n'
        "    n0 -> n1\n"
        '    n1 -> n1 [label="again"]\n'
        '    n1 -> n2 [label="after 3 d", style="dashed"]\n'
        "    n1 -> n3\n"
        "    n2 -> n0\n"
        "}\n"
        "// A note with {braces}.\n"
    )


QUOTED = r'"((?:[^"\\]|\\.)*)"'
ATTRIBUTES = rf"\[\w+={QUOTED}(?:, \w+={QUOTED})*\]"
STATEMENT = re.compile(rf"    (?:graph|n\d+|n\d+ -> n\d+)(?: {ATTRIBUTES})?")


def read(quoted: str) -> str:
    """Return what Graphviz shows for a quoted label without escapes for line ends."""
    escapes = {r"\\": "\\", r"\"": '"', "&amp;": "&"}
    return re.sub(r"\\.|&amp;", lambda found: escapes[found[0]], quoted)


@pytest.mark.parametrize(
    "name",
    [
        'say "hello"',
        "back\\slash",
        "ends with \\",
        'ends with \\"',
        r"not \N the name of the node",
        "&lt; is text & so is &",
        "Prüfung der 予約 🏨",
        '"]; n0 -> n1; evil [label="x',
        "// no comment /* */ # nor this",
        "<b>no HTML</b>",
        "",
    ],
)
def test_odd_names_stay_labels_in_dot(name):
    nodes = (Node(name, NodeKind.STEP, name), Node("b", NodeKind.HANDLER, "b"))
    drawn = dot(Graph(name, name, nodes, (Edge(name, "b", name),), (name,)))
    first, *statements, last, note = drawn.splitlines()
    assert (first, last) == ("digraph {", "}")
    assert all(STATEMENT.fullmatch(each) for each in statements), drawn
    labels = [each[1] for each in re.finditer(rf"label={QUOTED}", drawn)]
    assert [read(each) for each in labels] == [name, name, "b", *([name] if name else [])]
    assert note.startswith("// ")


def test_line_ends_and_control_characters_do_not_end_a_line_of_dot():
    name = "a\r\nb\x00\x1b\u2028c\ud800"
    drawn = dot(Graph(name, name, (Node("a", NodeKind.STEP, name),), (), (name,)))
    assert drawn.splitlines()[2:] == ['    n0 [label="a b c?", shape="box"]', "}", "// a b c?"]


def test_an_svg_is_well_formed_and_says_what_it_shows():
    drawing = svg(SMALL, id_prefix="mine")
    root = ElementTree.fromstring(drawing)
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "mine-title mine-desc"
    assert root.find("title").text == 'Small "one" <1> {x}'
    assert 'begin → a "b" <c> & #d with detail' in root.find("desc").text
    assert "(after 3 d)" in root.find("desc").text
    assert "style" not in drawing
    assert "<script" not in drawing
    classes = [each.get("class") for each in root.iter("g")]
    assert "node node-start is-visited" in classes
    assert "node node-step is-current" in classes
    assert "edge edge-timeout" in classes
    assert "edge edge-normal is-next" in classes
    titles = [each.text for each in root.iter("title")]
    assert 'a "b" <c> & #d with detail (current, times: 1200)' in titles
    assert [each.text for each in root.iter("text") if each.get("class") == "count"] == ["1 \u00d7", "999+ \u00d7"]


def test_an_svg_of_its_own_has_a_name_space_and_its_stylesheet():
    root = ElementTree.fromstring(svg(SMALL, is_alone=True))
    assert root.tag == f"{SPACE}svg"
    assert ".automation-graph .shape" in root.find(f"{SPACE}style").text


def test_long_names_and_wide_characters_stay_in_their_boxes():
    names = ("a" * 200, "package.module.function_with_a_long_name_" * 4, "予約" * 40, "", "word " * 60)
    graph = Graph("long", "long", tuple(Node(str(at), NodeKind.STEP, name) for at, name in enumerate(names)))
    root = ElementTree.fromstring(svg(graph))
    for node in root.iter("g"):
        box, texts = node.find("rect"), node.findall("text")
        if box is not None:
            assert len(texts) <= 3
            assert float(box.get("width")) <= 230
            assert all(len(each.text or "") <= 50 for each in texts)
    assert f"{'a' * 200}" in [each.text for each in root.iter("title")], "the whole name is there to be read"


def test_an_empty_graph_is_drawn():
    assert ElementTree.fromstring(svg(Graph("none", "none"))).get("viewBox") == "0 0 24 24"
    assert mermaid(Graph("none", "none")) == "%% none\nflowchart TD\n"
    assert dot(Graph("none", "none")).splitlines()[-1] == "}"


@pytest.mark.parametrize("seed", range(30))
def test_nodes_do_not_overlap_whatever_the_graph(seed):
    chance = random.Random(seed)
    count = chance.randint(1, 25)
    sizes = {str(at): Size(chance.uniform(40, 220), chance.choice([25.0, 40.0, 60.0])) for at in range(count)}
    keys = list(sizes)
    lines = [
        Line(chance.choice(keys), chance.choice(keys), chance.choice([None, Size(80, 16)]))
        for _ in range(chance.randint(0, 2 * count))
    ]
    placed = place(sizes, lines)
    boxes = [(*placed.nodes[key], size) for key, size in sizes.items()]
    boxes += [(*at, line.label) for at, line in zip(placed.labels, lines, strict=True) if at is not None]
    for (x1, y1, one), (x2, y2, other) in combinations(boxes, 2):
        is_beside = abs(x1 - x2) >= (one.width + other.width) / 2 + GAP_ACROSS - 0.01
        assert is_beside or abs(y1 - y2) >= (one.height + other.height) / 2
    for x, y, size in boxes:
        assert size.width / 2 <= x + 0.01
        assert x <= placed.width - size.width / 2 + 0.01
        assert size.height / 2 <= y + 0.01
        assert y <= placed.height - size.height / 2 + 0.01
    labelled = [line for line in lines if line.label is not None and line.source != line.target]
    assert sum(each is not None for each in placed.labels) == len(labelled)


def test_a_chain_is_straight_and_leads_down():
    sizes = {name: Size(50 + 40 * at, 30) for at, name in enumerate("abcd")}
    placed = place(sizes, [Line("a", "b"), Line("b", "c", Size(60, 16)), Line("c", "d")])
    assert {round(x, 3) for x, _ in placed.nodes.values()} == {85.0}
    assert [y for _, y in placed.nodes.values()] == sorted(y for _, y in placed.nodes.values())


def test_a_circle_is_drawn_with_one_way_back():
    sizes = {name: Size(50, 30) for name in "abc"}
    placed = place(sizes, [Line("a", "b"), Line("b", "c"), Line("c", "a"), Line("b", "b")])
    heights = [placed.nodes[name][1] for name in "abc"]
    assert heights == sorted(heights)
    assert len(placed.lines[2]) == 1, "the way back bends round the node between"
    assert placed.lines[0] == placed.lines[1] == placed.lines[3] == []


def test_a_large_graph_is_placed_in_a_second():
    sizes = {str(at): Size(100, 30) for at in range(150)}
    lines = [Line(str(at), str((at * 7 + step) % 150)) for at in range(150) for step in (1, 2)]
    placed = place(sizes, lines)
    assert len(placed.nodes) == 150


def test_the_graph_of_an_agent():
    @agent("concierge", spawn_on=["booking_created", "guest_*"], match={"pk": "{{ ctx.pk }}"}, singleton=True)
    class Concierge:
        class Context(BaseModel):
            pk: int = 0

        @handler("checkin_due", offset=timedelta(hours=-3), condition=lambda event: True)
        def greet(self, event):
            pass

        @handler("booking_cancelled")
        @handler("booking_deleted", match={"id": 3})
        def stop(self, run: AgentRun):
            AgentManager.cancel(run, "gone")

    graph = graph_named("concierge")
    assert graph.title == "Agent concierge, version 1"
    assert sorted(graph.sentences()) == sorted(
        [
            "booking_created event → concierge one for each match (spawns)",
            "guest_* event → concierge one for each match (spawns)",
            "concierge one for each match → checkin_due (pk = {{ ctx.pk }})",
            "checkin_due → greet if its condition is true (3 hours before)",
            "concierge one for each match → booking_cancelled (pk = {{ ctx.pk }})",
            "concierge one for each match → booking_deleted (id = 3)",
            "booking_cancelled → stop",
            "booking_deleted → stop",
            "stop → Cancelled",
        ]
    )
    assert graph.notes == ()


def test_an_agent_that_nothing_ends_says_so():
    of_guest("endless", spawn_on=None)
    graph = graph_named("endless")
    assert graph.notes == ("No handler ends the agent, as far as its source tells.",)
    assert graph.sentences()[0] == "spawned by code → endless one for each match"


def test_the_graph_of_an_event_has_everything_that_subscribes_to_it():
    FreeEvent("parcel.lost")

    @on_event("parcel.*", name="note", offset=timedelta(days=1))
    def note(event):
        pass

    @agent("finder", spawn_on="parcel.lost")
    class Finder:
        class Context(BaseModel):
            pass

        @handler("parcel.lost")
        def find(self):
            pass

    @workflow("search")
    class Search:
        class Context(BaseModel):
            pass

        @step(start=True)
        def look(self):
            return wait_for_event("parcel.lost", match={}, then=self.end)

        @step
        def end(self):
            return complete()

    assert graph_named("parcel.lost").sentences() == [
        "parcel.lost event → note function (1 day after)",
        "parcel.lost event → finder agent (spawns, find())",
        "parcel.lost event → search workflow (look waits for it)",
    ]


def test_an_event_without_subscribers_and_a_schedule():
    FreeEvent("parcel.found")
    assert graph_named("parcel.found").notes == ("Nothing subscribes to it.",)

    @schedule(timedelta(minutes=5), name="mail")
    def fetch_mail():
        pass

    graph = graph_named("mail")
    target = f"{__name__}.test_an_event_without_subscribers_and_a_schedule.<locals>.fetch_mail"
    assert graph.sentences() == [f"{target} event → {target} function"]


def test_a_misspelt_name_is_answered_with_the_nearest():
    class Ending:
        class Context(BaseModel):
            pass

        @step(start=True)
        def only(self):
            return complete()

    workflow("night_audit")(Ending)
    with pytest.raises(UnknownDefinitionError, match=r"is called .night_adit.\. Did you mean 'night_audit.\?"):
        graph_named("night_adit")
    with pytest.raises(UnknownDefinitionError, match="No agent is called 'night_audit'"):
        graph_named("night_audit", kind="agent")
    with pytest.raises(UnknownDefinitionError, match=r"kind='workflo' has no graphs\. Did you mean 'workflow'\?"):
        graph_named("night_audit", kind="workflo")
    with pytest.raises(UnknownWorkflowError, match="has no version '7'"):
        graph_named("night_audit", version="7")


def test_everything_that_is_registered_has_a_drawing():
    for kind, names in graph_names().items():
        for name in names:
            graph = graph_named(name, kind=kind)
            ElementTree.fromstring(svg(graph))
            assert mermaid(graph).count("\n") >= 2 + len(graph.nodes) + len(graph.edges)
            assert dot(graph).count("\n") >= 3 + len(graph.nodes) + len(graph.edges)


def test_labels_are_in_the_language_of_the_reader():
    class Ending:
        class Context(BaseModel):
            pass

        @step(start=True)
        def only(self):
            return goto(self.only)

    workflow("night_audit")(Ending)
    with translation.override("de"):
        assert "durch Code oder" in svg(graph_named("night_audit"))
