"""Which tests run on which database in the gate's two tiers: none twice, and what two cores have no time for is
decided here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from contextlib import nullcontext
from fractions import Fraction
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace

import pytest
from _pytest.mark.expression import Expression
from tools import gate

from tests import conftest
from tests.support.marks import not_on, only_on
from tests.support.shares import PART, WrongShareError, is_in_share
from tests.support.shares import VARIABLE as SHARE

PYTHON = Path("/usr/bin/python3")
DATABASES = {name: {"TEST_DATABASE": name} for name in ("SQLite", "PostgreSQL", "MariaDB")}
TWO = {name: DATABASES[name] for name in ("SQLite", "PostgreSQL")}
ROOT = Path(__file__).resolve().parents[2]
MARKS = [tuple(filter(None, each)) for each in product(("", "slow"), ("", "alone"))]
FOLDERS = sorted({f"tests/{path.relative_to(ROOT / 'tests').parts[0]}" for path in (ROOT / "tests").rglob("test_*.py")})


def selects(suite: gate.Suite, marks: Collection[str], folder: str) -> bool:
    options = list(suite.options)
    expression = options[options.index("-m") + 1]
    named = [option for option in options if option.startswith("tests/")]
    ignored = f"--ignore={folder}" in options or (named and folder not in named)
    return not ignored and Expression.compile(expression).evaluate(lambda name, **kwargs: name in marks)


def share_of(suite: gate.Suite) -> Fraction:
    """Return which part of the selected tests a suite runs."""
    found = Fraction(1)
    for variable in (SHARE, PART):
        numbers, _, of = suite.environment.get(variable, "").partition("/")
        found *= Fraction(len(numbers.split(",")), int(of)) if numbers else 1
    return found


def runs(title: str, marks: Collection[str], folder: str) -> Fraction:
    """Return how often a test with these marks runs on a database with the gate's own Python."""
    tiers = [
        *gate.first_tier_suites(TWO),
        *gate.second_tier_suites(DATABASES, None, everything=False),
        *gate.worker_suites(DATABASES, everything=False),
        *gate.runtime_suites(DATABASES, None, everything=False),
    ]
    assert folder in FOLDERS
    return sum(
        (share_of(suite) for suite in tiers if suite.title.startswith(title) and selects(suite, marks, folder)),
        start=Fraction(0),
    )


@pytest.mark.parametrize("title", DATABASES)
@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: " and ".join(marks) or "unmarked")
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_test_runs_in_one_tier(title, marks, folder):
    # Tests that need no database run on SQLite, and the slow ones on PostgreSQL too.
    without = folder in gate.NO_DATABASE and "alone" not in marks
    without = without and (title == "MariaDB" or (title == "PostgreSQL" and "slow" not in marks))
    # The runtimes are tested on PostgreSQL, and with the newest Python on two databases.
    without = without or (title != "PostgreSQL" and folder == gate.RUNTIMES and "alone" in marks)
    # The pages are tested in a browser on PostgreSQL.
    without = without or (title != "PostgreSQL" and folder == gate.BROWSER and "alone" not in marks)
    # Of the faults and scenarios SQLite runs half and each server a quarter, and MariaDB a quarter of the others. With
    # real workers, the databases beside PostgreSQL run half.
    part = Fraction(1)
    if "alone" not in marks and folder in gate.FAULTS:
        part = Fraction(1, 2 if title == "SQLite" else 4)
    elif "alone" in marks and title != "PostgreSQL":
        part = Fraction(1, 2)
    elif title == "MariaDB":
        part = Fraction(1, 4)
    assert runs(title, marks, folder) == (0 if without else part)


@pytest.mark.parametrize("names", [("SQLite",), ("SQLite", "PostgreSQL"), tuple(DATABASES)])
@pytest.mark.parametrize("everything", [False, True])
def test_each_of_the_faults_runs_on_one_database_and_on_all_in_the_whole_matrix(names, everything, monkeypatch):
    monkeypatch.setattr(gate, "create_environment", lambda *args: PYTHON)
    databases = {name: DATABASES[name] for name in names}
    suites = gate.second_tier_suites(databases, None, everything=everything)
    shares = [suite.environment.get(SHARE, "") for suite in suites if "faults" in suite.title]
    tests = [f"tests/faults/test_of.py::test_{number}" for number in range(100)]
    runs = [test for share in shares for test in tests if is_in_share(test, share)]
    assert len(shares) == len(names)
    assert sorted(runs) == sorted(tests * (len(names) if everything else 1))


@pytest.mark.parametrize("title", ["SQLite", "PostgreSQL"])
def test_the_tiers_run_different_shares_of_the_quick_tests(title):
    suites = [*gate.first_tier_suites(TWO), *gate.second_tier_suites(DATABASES, None, everything=False)]
    mine = [suite for suite in suites if suite.environment["TEST_DATABASE"] == title and gate.QUICK in suite.options]
    assert sorted(filter(None, (suite.environment.get(SHARE) for suite in mine))) == ["0/2", "1/2"]


def test_the_first_tier_runs_each_quick_test_on_one_of_two_databases():
    assert sorted(suite.environment.get(SHARE, "all") for suite in gate.first_tier_suites(TWO)) == ["0/2", "1/2", "all"]
    only = {"SQLite": DATABASES["SQLite"]}
    assert not any(SHARE in suite.environment for suite in gate.first_tier_suites(only))


def test_each_test_is_in_one_share():
    names = [f"tests/unit/test_of.py::test_{number}" for number in range(1000)]
    found = [[name for name in names if is_in_share(name, f"{number}/3")] for number in range(3)]
    assert sorted(chain(*found)) == sorted(names)
    assert all(300 < len(each) < 370 for each in found)
    assert [name for name in names if is_in_share(name, "")] == names


def test_a_share_may_have_several_numbers():
    names = [f"tests/unit/test_of.py::test_{number}" for number in range(100)]
    found = {name for name in names if is_in_share(name, "0,2/3")}
    assert found == {name for name in names if not is_in_share(name, "1/3")}


class Item:
    """What ``pytest_collection_modifyitems`` uses of a test."""

    def __init__(self, name: str, *marks: pytest.MarkDecorator) -> None:
        self.nodeid, self.marks, self.added = name, [each.mark for each in marks], list[pytest.MarkDecorator]()

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        return [mark for mark in self.marks if mark.name == name]

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.added.append(mark)


@pytest.mark.parametrize("share", ["0/2", "1/2"])
def test_a_test_of_one_database_is_in_each_share_of_that_and_skipped_on_others(share, monkeypatch):
    monkeypatch.setenv(SHARE, share)
    monkeypatch.setattr(conftest, "connection", SimpleNamespace(vendor="postgresql"))
    everywhere = [Item(f"everywhere{number}") for number in range(20)]
    here = [Item(f"here{number}", not_on("sqlite")) for number in range(20)]
    elsewhere = [Item(f"elsewhere{number}", not_on("mysql"), only_on("sqlite", reason="why")) for number in range(20)]
    items, deselected = [*everywhere, *here, *elsewhere], []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    conftest.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
    assert set(here) <= set(items)
    assert not [item for item in (*everywhere, *here) if item.added]
    assert [[mark.kwargs for mark in item.added] for item in elsewhere] == [[{"reason": "why"}]] * 20
    assert {item for item in (*everywhere, *elsewhere) if is_in_share(item.nodeid, share)} == {*items} - {*here}
    assert {*items} | {*deselected} == {*everywhere, *here, *elsewhere}


def test_no_test_of_one_database_is_skipped_on_others_without_the_gate_knowing():
    """``skipif`` would leave it in the share of a database that cannot run it."""
    of_vendor = re.compile(r"skipif\([^)]*vendor")
    found = [path.name for path in (ROOT / "tests").rglob("*.py") if of_vendor.search(path.read_text())]
    assert found == []


def test_parts_divide_a_share(monkeypatch):
    monkeypatch.setattr(conftest, "connection", SimpleNamespace(vendor="postgresql"))
    names, found = [f"test{number}" for number in range(20)], []
    for part in ("0/2", "1/2"):
        monkeypatch.setenv(PART, part)
        items = [Item(name, only_on("postgresql")) for name in names]
        hook = SimpleNamespace(pytest_deselected=lambda items: None)
        conftest.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
        found.append([item.nodeid for item in items])
    assert all(found)
    assert sorted(chain(*found)) == sorted(names)


def test_an_unknown_database_is_an_error():
    with pytest.raises(ValueError, match=r"mariadb.*mysql"):
        only_on("mariadb")


@pytest.mark.parametrize("share", ["half", "1", "2/2", "-1/2", "1/0", "1/2/3", "0,2/2", ",0/2"])
def test_a_wrong_share_is_an_error(share):
    with pytest.raises(WrongShareError, match=r"TEST_SHARE is .*0/2"):
        is_in_share("tests/unit/test_of.py::test_it", share)


@pytest.mark.parametrize("names", [("SQLite",), ("SQLite", "PostgreSQL"), tuple(DATABASES)])
def test_the_databases_share_the_crash_points(names):
    suites = gate.second_tier_suites({name: DATABASES[name] for name in names}, None, everything=False)
    shares = [suite.environment["CRASH_POINTS"] for suite in suites if "faults" in suite.title]
    tested = [
        at
        for number, of in (map(int, share.split("/")) for share in shares)
        for at in range(3 * len(names))
        for mode in range(3)
        if (at + number) % of == mode
    ]
    assert len(set(tested)) == len(tested) == 3 * len(names), "each database a part, and no point twice"


@pytest.mark.parametrize("newest", [None, PYTHON])
def test_the_lifecycle_runs_once_more_with_a_clock_that_moves_and_a_replica(newest):
    suites = list(gate.second_tier_suites(DATABASES, newest, everything=False))
    (suite,) = [suite for suite in suites if "TEST_CLOCK_STEP" in suite.environment]
    assert "TEST_REPLICA" in suite.environment
    assert suite.python == (newest or Path(sys.executable))
    assert [folder for folder in FOLDERS if selects(suite, (), folder)] == [gate.LIFECYCLE]
    assert not selects(suite, ("exact_times",), gate.LIFECYCLE)


@pytest.mark.parametrize("database", ["PostgreSQL", "SQLite"])
def test_the_pages_run_in_a_browser_on_one_database(database):
    available = DATABASES if database == "PostgreSQL" else {"SQLite": DATABASES["SQLite"]}
    first_tier = gate.first_tier_suites({name: available[name] for name in TWO if name in available})
    suites = [*first_tier, *gate.second_tier_suites(available, None, everything=False)]
    (found,) = [suite for suite in suites if selects(suite, ("slow",), gate.BROWSER)]
    assert found.environment == DATABASES[database]


def test_with_the_newest_python_the_quick_tests_run_on_sqlite():
    suites = [suite for suite in gate.second_tier_suites(DATABASES, PYTHON, everything=False) if suite.python == PYTHON]
    found = [
        (suite.environment["TEST_DATABASE"], folder)
        for suite in suites
        for folder in FOLDERS
        if selects(suite, (), folder)
    ]
    assert sorted(found) == [("SQLite", folder) for folder in FOLDERS if folder not in (*gate.FAULTS, gate.BROWSER)]


def test_with_the_newest_python_the_slow_tests_of_the_pages_run_once_on_sqlite():
    suites = gate.second_tier_suites(DATABASES, PYTHON, everything=False)
    for folder in gate.PAGES_AND_METRICS:
        assert [suite.title for suite in suites if selects(suite, ("slow",), folder)].count("SQLite") == 1
        suites = gate.second_tier_suites(DATABASES, PYTHON, everything=False)


def test_with_the_newest_python_the_runtimes_run_on_both_databases():
    suites = [suite for suite in gate.runtime_suites(DATABASES, PYTHON, everything=False) if suite.python == PYTHON]
    assert [suite.environment["TEST_DATABASE"] for suite in suites] == ["SQLite", "PostgreSQL"]
    assert all(selects(suite, ("alone",), gate.RUNTIMES) for suite in suites)


@pytest.mark.parametrize("may_be_empty", [True, False])
def test_a_suite_without_tests_passes_only_where_it_may_be_empty(tmp_path, may_be_empty):
    (tmp_path / "test_nothing.py").touch()
    alone = ("-p", "no:cacheprovider", "-p", "no:django", "-c", os.devnull, "--noconftest", str(tmp_path))
    suite = gate.Suite("none", Path(sys.executable), {"PYTEST_ADDOPTS": ""}, alone, may_be_empty=may_be_empty)
    with nullcontext() if may_be_empty else pytest.raises(SystemExit, match="none"):
        gate.run_in_parallel([suite], tmp_path)


def test_what_may_be_empty_is_only_what_has_the_mark_slow():
    for suite in gate.second_tier_suites(DATABASES, PYTHON, everything=False):
        assert suite.may_be_empty == (gate.SLOW in suite.options)
