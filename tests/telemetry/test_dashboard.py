"""The Grafana dashboard and the examples of the docs name metrics and labels that are exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra [prometheus] is not installed")

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from django_ai.automation.contrib.telemetry import metrics
from django_ai.automation.contrib.telemetry.collector import DatabaseCollector

pytestmark = pytest.mark.django_db

DOCS = Path(__file__).resolve().parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "automation.json").read_text())
PAGE = (DOCS / "howto" / "telemetry.md").read_text()
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
GRAFANA_VARIABLES = {"$queue", "$__rate_interval", "${datasource}"}


def exported() -> dict[str, set[str]]:
    """Return the labels of each series that is exported, by its name."""
    tables = CollectorRegistry()
    tables.register(DatabaseCollector())
    found: dict[str, set[str]] = {}
    for family in tables.collect():
        labels = {label for sample in family.samples for label in sample.labels}
        found |= {family.name + suffix: labels for suffix in SUFFIXES[family.type]}
    for metric in (each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)):
        assert metric in REGISTRY._collector_to_names
        (family,) = metric.describe()
        found |= {family.name + suffix: {*metric._labelnames, "le"} for suffix in SUFFIXES[family.type]}
    return found


def expressions(node: Any) -> Iterator[str]:
    """Yield every query of the dashboard."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("expr", "definition"))
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from expressions(child)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bautomation_[a-z_]+\b", text))


def test_the_dashboard_asks_for_exported_metrics_and_shows_each_of_them():
    known = exported()
    asked = {name for each in expressions(DASHBOARD) for name in names_in(each)}
    assert asked - known.keys() == set()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known}
    assert families - {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} == set()


def test_the_dashboard_filters_and_groups_by_labels_that_the_metrics_have():
    known = exported()
    for each in expressions(DASHBOARD):
        (first, *_) = names_in(each)
        labels = set(re.findall(r"(\w+)=~?\"", each))
        labels |= {label.strip() for group in re.findall(r"by \(([^)]+)\)", each) for label in group.split(",")}
        assert labels - known[first] == set(), each
        assert set(re.findall(r"\$\w+", each)) <= GRAFANA_VARIABLES


def test_panels_have_places_and_ids_of_their_own():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & own
        cells |= own


def test_the_page_lists_each_metric_with_its_labels_and_no_other():
    known = exported()
    table = PAGE.partition("## Measure with Prometheus")[2]
    named: dict[str, set[str]] = {}
    for line in (each for each in table.splitlines() if each.startswith("| `automation_")):
        for name, labels in re.findall(r"`(automation_\w+)(?:\{([^}]*)\})?`", line.split(" | ")[0]):
            named[name] = {label.strip() for label in labels.split(",") if label}
    families = {re.sub(r"_(bucket|count|sum)$", "", name): labels - {"le"} for name, labels in known.items()}
    assert named == families


def test_the_rules_of_the_page_name_exported_metrics():
    yaml = "\n".join(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    assert names_in(yaml)
    assert names_in(yaml) - exported().keys() == set()
