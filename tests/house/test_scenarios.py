"""The thirty scenarios of what may go wrong: each has a test that bears its number, and a row in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "tests" / "scenarios"
PAGE = ROOT / "docs" / "reliability.md"


@pytest.mark.parametrize("number", range(1, 31))
def test_a_scenario_has_a_test_that_bears_its_number(number):
    (module,) = SCENARIOS.glob(f"test_{number:02}_*.py")
    assert re.search(rf"^\s*def test_{number:02}_\w+\(", module.read_text(), re.MULTILINE), f"{module.name} is empty"


@pytest.mark.parametrize("number", range(1, 31))
def test_a_scenario_is_on_the_page_about_reliability(number):
    (module,) = SCENARIOS.glob(f"test_{number:02}_*.py")
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {number} |")]
    assert any(f"`{module.stem}`" in row for row in rows), rows


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", PAGE.read_text()))
    assert named
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert missing == []
