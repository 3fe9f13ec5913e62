"""The results of ``bench/peers.py``: written after each measurement; medians, ratios and tables of them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.peers.contestants import CONTESTANTS

Figures = dict[str, Any]

ROWS = (
    ("starts", "per second", "starts a second"),
    ("drain", "per second", "one-step calls a second, from a backlog"),
    ("end_to_end", "per second", "one-step calls a second, start to end"),
    ("five", "per second", "steps a second, calls of five steps"),
    ("latency", "p50 ms", "call to body, idle worker, p50, ms"),
    ("latency", "p99 ms", "call to body, idle worker, p99, ms"),
)
"""Measurement, figure and the text of the table. Growth has a table of its own."""


class Results:
    """Everything that was measured, missing or failed, in one JSON file that is complete after each call."""

    def __init__(self, path: Path, content: dict[str, Any] | None = None) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "about": {},
            "contestants": {},
            "missing": {},
            "failures": [],
            "measurements": [],
            **(content or {}),
        }

    @classmethod
    def load(cls, path: Path) -> Results:
        return cls(path, json.loads(path.read_text()))

    def about(self, **facts: Any) -> None:
        self.content["about"] |= facts
        self._write()

    def describe(self, contestant: str, description: dict[str, Any]) -> None:
        self.content["contestants"][contestant] = description
        self._write()

    def missing(self, contestant: str, reason: str) -> None:
        self.content["missing"][contestant] = reason
        self._write()

    def failed(self, contestant: str, measurement: str, number: int, reason: str) -> None:
        entry = {"contestant": contestant, "measurement": measurement, "round": number, "reason": reason}
        self.content["failures"].append(entry)
        self._write()

    def add(self, contestant: str, measurement: str, number: int, figures: Figures) -> None:
        entry = {"contestant": contestant, "measurement": measurement, "round": number, "figures": figures}
        self.content["measurements"].append(entry)
        self._write()

    def _write(self) -> None:
        """Replace the file in one step: a process that is killed leaves the last complete one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(self.content, indent=1))
        os.replace(beside, self.path)

    def by_round(self, contestant: str, measurement: str, figure: str) -> dict[int, float]:
        """Return the figure of each round that has one."""
        return {
            each["round"]: each["figures"][figure]
            for each in self.content["measurements"]
            if (each["contestant"], each["measurement"]) == (contestant, measurement) and figure in each["figures"]
        }

    def median(self, contestant: str, measurement: str, figure: str) -> float | None:
        found = self.by_round(contestant, measurement, figure)
        return statistics.median(found.values()) if found else None

    def ratio(self, ours: str, peer: str, measurement: str, figure: str) -> float | None:
        """Return the median of ours/peer over the rounds that have both figures."""
        mine, theirs = self.by_round(ours, measurement, figure), self.by_round(peer, measurement, figure)
        found = [mine[number] / theirs[number] for number in mine.keys() & theirs.keys() if theirs[number]]
        return statistics.median(found) if found else None

    def last_round(self) -> int:
        """Return the number of the last round, 0 if there is none. Rounds that are added count on from it."""
        return max((each["round"] for each in self.content["measurements"] + self.content["failures"]), default=0)

    def measured(self) -> list[str]:
        """Return the contestants that have any figure, in their usual order."""
        names = {each["contestant"] for each in self.content["measurements"]}
        return [each.name for each in CONTESTANTS if each.name in names]

    def sizes(self) -> list[int]:
        """Return the numbers of finished calls among which ``growth`` was measured."""
        names = {each["measurement"] for each in self.content["measurements"]}
        return sorted(int(name.partition(":")[2]) for name in names if name.startswith("growth:"))

    def samples(self, contestant: str) -> list[float]:
        """Return the latencies of all rounds."""
        return [
            sample
            for each in self.content["measurements"]
            if (each["contestant"], each["measurement"]) == (contestant, "latency")
            for sample in each["figures"].get("samples ms", [])
        ]


def growth(size: int) -> str:
    """Return the name of the measurement among ``size`` finished calls."""
    return f"growth:{size}"


def label(name: str) -> str:
    return next((each.label for each in CONTESTANTS if each.name == name), name)


def report(results: Results) -> str:
    """Return the tables of medians, ratios and configurations, and what is missing or failed, as Markdown."""
    parts = [table(*figures(results))]
    for ours in [each.name for each in CONTESTANTS if each.ours and each.name in results.measured()]:
        parts.append(table(*ratios(results, ours)))
    if results.sizes():
        parts.append(table(*growth_figures(results)))
    if results.content["contestants"]:
        parts.append(table(*configurations(results)))
    problems = [f"- missing: {label(name)}: {reason}" for name, reason in results.content["missing"].items()]
    problems += [
        f"- failed: {label(each['contestant'])}, {each['measurement']}, round {each['round']}: {each['reason']}"
        for each in results.content["failures"]
    ]
    if problems:
        parts.append("\n".join(problems))
    return "\n\n".join(parts)


def figures(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the lines of the table of medians."""
    names = results.measured()
    lines = []
    for measurement, figure, text in ROWS:
        found = [results.median(name, measurement, figure) for name in names]
        if any(value is not None for value in found):
            lines.append([text, *(_number(value) for value in found)])
    return ["median", *map(label, names)], lines


def ratios(results: Results, ours: str) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the lines of the table of ``ours`` divided by each peer."""
    ones = {each.name for each in CONTESTANTS if each.ours}
    names = [name for name in results.measured() if name not in ones]
    lines = []
    for measurement, figure, text in ROWS:
        found = [results.ratio(ours, name, measurement, figure) for name in names]
        if any(value is not None for value in found):
            lines.append([text, *("" if value is None else f"{value:.2f}" for value in found)])
    return [f"{label(ours)} divided by", *map(label, names)], lines


def growth_figures(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the lines of the table of calls per second among finished ones."""
    sizes = results.sizes()
    lines = []
    for name in results.measured():
        found = [results.median(name, growth(size), "per second") for size in sizes]
        if any(value is not None for value in found):
            lines.append([label(name), *(_number(value) for value in found)])
    return ["calls a second among finished ones", *(f"{size:,}" for size in sizes)], lines


def configurations(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the lines of the table of how each contestant ran."""
    lines = []
    for name, found in results.content["contestants"].items():
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        lines.append([label(name), versions, *(found[key] for key in ("command", "settings", "notes"))])
    return ["", "versions", "workers", "settings", "notes"], lines


def table(heading: list[str], lines: Iterable[list[str]]) -> str:
    """Return a table in Markdown, with columns of even width."""
    rows = [heading, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    written = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([written[0], "| " + " | ".join("-" * width for width in widths) + " |", *written[1:]])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
