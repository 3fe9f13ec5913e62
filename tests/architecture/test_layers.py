"""Imports go one way: queues, then events, then workflows and agents, which are neighbours and strangers."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import django_ai.automation

ROOT = Path(django_ai.automation.__file__).parent
PACKAGE = "django_ai.automation"
HIGHER = {"queues", "events", "workflows", "agents", "testing"}
ABOVE = {
    "values": {"db", "state", *HIGHER},
    "db": {"state", *HIGHER},
    "state": HIGHER,
    "queues": {"events", "workflows", "agents", "testing"},
    "events": {"workflows", "agents", "testing"},
    "workflows": {"agents", "testing"},
    "agents": {"workflows", "testing"},
}
GROUND = {"conf.py", "exceptions.py"}


def sources(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def package_of(path: Path) -> list[str]:
    return [*PACKAGE.split("."), *path.relative_to(ROOT).parts[:-1]]


def imported(path: Path) -> set[str]:
    """Return the dotted names that a module imports, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes that are docstrings, or texts that stand alone as one."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def texts(path: Path) -> set[str]:
    """Return the texts in the code of a module, without its docstrings."""
    tree = ast.parse(path.read_text())
    prose = docstrings(tree)
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    }


@pytest.mark.parametrize("path", [path for floor in ABOVE for path in sources(floor)], ids=lambda path: path.stem)
def test_no_module_imports_from_above(path):
    floor = path.relative_to(ROOT).parts[0]
    forbidden = {f"{PACKAGE}.{each}" for each in ABOVE[floor]}
    wrong = {name for name in imported(path) if any(name == each or name.startswith(f"{each}.") for each in forbidden)}
    assert not wrong


@pytest.mark.parametrize("path", [path for floor in ABOVE for path in sources(floor)], ids=lambda path: path.stem)
def test_no_module_names_what_is_above_in_a_text(path):
    floor = path.relative_to(ROOT).parts[0]
    paths = {f"{PACKAGE}.{each}" for each in ABOVE[floor]} | {f"automation_{each}" for each in ABOVE[floor]}
    wrong = {text for text in texts(path) if any(each in text for each in paths)}
    assert not wrong


@pytest.mark.parametrize("name", sorted(GROUND))
def test_what_lies_under_all_floors_imports_none(name):
    assert not {each for each in imported(ROOT / name) if each.startswith(tuple(f"{PACKAGE}.{f}" for f in ABOVE))}


def test_the_package_itself_imports_nothing_when_it_is_imported():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_import for alias in node.names}
    assert names == {"annotations", "import_module", "TYPE_CHECKING", "Any"}


@pytest.mark.parametrize(
    "module",
    [
        "",
        ".agents.core",
        ".events.callbacks",
        ".events.claims",
        ".events.services",
        ".testing",
        ".workflows.core",
        ".workflows.engine",
    ],
)
def test_facades_say_what_is_public(module):
    found = importlib.import_module(f"{PACKAGE}{module}")
    assert found.__all__
    for name in found.__all__:
        assert getattr(found, name) is not None
    assert len(set(found.__all__)) == len(found.__all__)
    assert sorted(found.__all__) == list(found.__all__) or module == ""


@pytest.mark.parametrize("floor", ["workflows", "agents"])
def test_the_core_facades_hold_no_logic(floor):
    tree = ast.parse((ROOT / floor / "core.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def test_retry_is_one_class():
    from django_ai.automation.values.retry import Retry
    from django_ai.automation.workflows import core

    assert core.Retry is Retry is django_ai.automation.Retry


def test_the_package_is_typed():
    assert (ROOT / "py.typed").exists()


@pytest.mark.parametrize(
    "module", ["agents/transitions", "events/timing", "values/failures", "values/retry", "workflows/transitions"]
)
def test_what_decides_imports_neither_a_database_nor_a_clock(module):
    names = imported(ROOT / f"{module}.py")
    assert not {each for each in names if each.startswith(("django.db", "django.utils.timezone", "time."))}


def test_one_context_variable_says_what_runs_now():
    """The other one says of a block of code that it reads from the writer."""
    holders = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if "ContextVar(" in path.read_text()}
    assert holders == {"queues/causation.py", "db/writer.py"}
