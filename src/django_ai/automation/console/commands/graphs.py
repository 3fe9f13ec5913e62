"""``graph``: what code declares, as a drawing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django.core.management.base import CommandParser

from ...exceptions import UnknownDefinitionError
from ..graphs import KINDS as GRAPH_KINDS
from ..graphs import Graph as Drawn
from ..graphs import dot, graph_named, mermaid, svg
from .names import check_name
from .output import Output, Usage
from .verb import Options, Verb

FORMATS: dict[str, Callable[[Drawn], str]] = {"mermaid": mermaid, "dot": dot, "svg": partial(svg, is_alone=True)}


class Graph(Verb):
    """``automation graph NAME``."""

    name = "graph"
    help = "Draw a workflow, an agent, an event or a schedule: what may follow what."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("graph_name", metavar="NAME", help="its name")
        parser.add_argument("--kind", default="", help=f"if several have this name: one of {', '.join(GRAPH_KINDS)}")
        parser.add_argument("--of-version", metavar="VERSION", help="the version of a workflow (default: the newest)")
        parser.add_argument(
            "--format",
            choices=list(FORMATS),
            default="mermaid",
            help="of the drawing (default: mermaid; dot: Graphviz)",
        )

    def perform(self, options: Options, output: Output) -> Any:
        if options["kind"]:
            check_name(options["kind"], GRAPH_KINDS, "kind")
        try:
            graph = graph_named(options["graph_name"], kind=options["kind"], version=options["of_version"])
        except UnknownDefinitionError as error:
            raise Usage(str(error)) from error
        drawn = FORMATS[options["format"]](graph)
        output.text(drawn)
        return {"name": options["graph_name"], "format": options["format"], "graph": drawn}
