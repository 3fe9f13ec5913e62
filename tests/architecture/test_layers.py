"""Imports go one way, and façades contain no logic. The import contracts are in ``pyproject.toml``."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import django_ai.automation

PROJECT = Path(__file__).resolve().parents[2]
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


def test_imports_keep_their_contracts():
    """``make imports`` shows the same report. In a process of its own: import-linter configures the logging of its
    process, which disables the loggers that exist."""
    pytest.importorskip("importlinter", reason="import-linter is in the dependency group dev")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def strings(path: Path) -> set[str]:
    """Return the strings in the code of a module, without its docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }


@pytest.mark.parametrize("layer", ABOVE)
def test_no_module_names_a_higher_layer_in_a_string(layer):
    """An import contract does not check ``import_string("...")`` or ``ForeignKey("...")``."""
    names = {f"{PACKAGE}.{each}" for each in ABOVE[layer]} | {f"automation_{each}" for each in ABOVE[layer]}
    found = {
        (path.relative_to(ROOT).as_posix(), string)
        for path in (ROOT / layer).rglob("*.py")
        for string in strings(path)
        if any(each in string for each in names)
    }
    assert found == set()


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
        ".contrib.webhooks",
        ".events.callbacks",
        ".events.claims",
        ".events.emission",
        ".events.services",
        ".testing",
        ".workflows.core",
        ".workflows.engine",
    ],
)
def test_facades_list_what_is_public(module):
    found = importlib.import_module(f"{PACKAGE}{module}")
    assert found.__all__
    for name in found.__all__:
        assert getattr(found, name) is not None
    assert len(set(found.__all__)) == len(found.__all__)
    assert sorted(found.__all__) == list(found.__all__) or module == ""


@pytest.mark.parametrize("layer", ["workflows", "agents"])
def test_the_core_facades_hold_no_logic(layer):
    tree = ast.parse((ROOT / layer / "core.py").read_text())
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
def test_modules_that_decide_import_neither_a_database_nor_a_clock(module):
    nodes = list(ast.walk(ast.parse((ROOT / f"{module}.py").read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    sources = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names |= {f"{node.module}.{alias.name}" for node in sources for alias in node.names}
    assert not {each for each in names if each == "time" or each.startswith(("django.db", "django.utils.timezone"))}


def test_six_modules_have_context_variables():
    """``causation`` records the current run; ``observing`` what logs are about; ``acting`` who acts; ``history`` what a
    bulk action has done; ``writer`` marks code that reads from the writer database; ``uncaptured`` marks writes that
    shall cause no events."""
    holders = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if "ContextVar(" in path.read_text()}
    assert holders == {
        "queues/causation.py",
        "queues/observing.py",
        "queues/acting.py",
        "queues/history.py",
        "db/writer.py",
        "events/uncaptured.py",
    }
