"""Each failure scenario has a test with its number, and a row in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "tests" / "scenarios"
PAGE = ROOT / "docs" / "explanation" / "reliability.md"


NUMBERS = [int(number) for number in re.findall(r"^\| (\d+) \| .*`test_\d+_", PAGE.read_text(), re.MULTILINE)]


def modules(number: int) -> list[Path]:
    return sorted(SCENARIOS.glob(f"test_{number:02}_*.py"))


def test_the_page_lists_each_scenario_once_and_in_order():
    assert NUMBERS[:30] == list(range(1, 31))
    assert sorted(set(NUMBERS)) == NUMBERS
    assert {int(path.name[5:7]) for path in SCENARIOS.glob("test_*.py")} == set(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_scenario_has_a_test_that_bears_its_number(number):
    assert modules(number)
    for module in modules(number):
        assert re.search(rf"^\s*def test_{number:02}_\w+\(", module.read_text(), re.MULTILINE), (
            f"{module.name} has no test with its number"
        )


@pytest.mark.parametrize("number", NUMBERS)
def test_a_scenario_is_on_the_page_about_reliability(number):
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {number} |")]
    assert [module.stem for module in modules(number) if not any(f"`{module.stem}`" in row for row in rows)] == []


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", PAGE.read_text()))
    assert named
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert missing == []
