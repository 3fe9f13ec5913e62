"""The tests themselves: small modules that share their helpers through ``tests/support``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MODULES = sorted(TESTS.rglob("*.py"))
MAX_LINES = 600


def imported(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, or may import by ``from package import module``."""
    found = set()
    package = ["tests", *path.relative_to(TESTS).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def test_nothing_is_imported_from_a_test_module():
    tests = {
        ".".join(["tests", *path.relative_to(TESTS).with_suffix("").parts])
        for path in MODULES
        if path.name.startswith("test_")
    }
    found = {path.relative_to(TESTS).as_posix(): imported(path) & tests for path in MODULES}
    assert {path: names for path, names in found.items() if names} == {}


def test_helpers_are_in_support_or_apps():
    modules = [path.relative_to(TESTS) for path in MODULES if not path.name.startswith("test_")]
    folders = {"support", "apps", "typing"}  # only a type checker reads typing
    names = {"__init__.py", "conftest.py", "settings.py", "urls.py"}
    assert [path for path in modules if path.parts[0] not in folders and path.name not in names] == []


@pytest.mark.parametrize("folder", sorted({path.relative_to(TESTS).parts[0] for path in MODULES}))
def test_no_module_is_long(folder):
    lines = {path.relative_to(TESTS).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert {path for path, number in lines.items() if path.startswith(folder) and number > MAX_LINES} == set()
