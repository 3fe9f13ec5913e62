"""Every Python block of the documentation is executed, page by page, with the test settings."""

from __future__ import annotations

import re
import shlex
import unittest
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import get_commands, load_command_class
from django.db import connection, models
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from django_ai.automation import conf
from django_ai.automation.events.declarations import forget_declarations
from tests.support.documentation import AGENTS, PAGES, ROOT
from tests.support.marks import only_on

pytestmark = [
    pytest.mark.django_db(transaction=True),
    only_on("sqlite", reason="the documentation uses SQLite"),
]

BLOCKS = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])
APP = "tests.apps.shop"
HAS_PYTHON = [page for page in [*PAGES, AGENTS] if "```python" in page.read_text()]


class Namespace(dict[str, Any]):
    """The namespace of one page, executed as the test app's ``shop.models``, and the tables of the declared models."""

    def __init__(self) -> None:
        super().__init__(__name__=f"{APP}.models")
        self.tables: list[type[models.Model]] = []
        self.tested: list[type[unittest.TestCase]] = []

    def make_tables(self) -> None:
        """Create the tables of models that were declared since the last call."""
        for model in apps.get_app_config("shop").get_models():
            if model not in self.tables:
                with connection.schema_editor() as editor:
                    editor.create_model(model)
                self.tables.append(model)

    def run_tests(self) -> None:
        """Run the test cases that were declared since the last call."""
        for case in list(self.values()):
            if isinstance(case, type) and issubclass(case, unittest.TestCase) and case not in self.tested:
                self.tested.append(case)
                result = unittest.TestResult()
                unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
                assert [text for _, text in [*result.errors, *result.failures]] == []
                assert result.testsRun or case.__module__ != self["__name__"]

    def drop_tables(self) -> None:
        """Drop the tables, and remove the models from Django's registry."""
        for model in reversed(self.tables):
            with connection.schema_editor() as editor:
                editor.delete_model(model)
        apps.all_models["shop"].clear()
        apps.clear_cache()
        forget_declarations()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """Yield a new namespace. Its ``enter`` keeps a context manager open until the end of the page."""
    found = Namespace()
    with ExitStack() as stack:
        found["enter"] = stack.enter_context
        try:
            yield found
        finally:
            stack.close()
            found.drop_tables()


@pytest.mark.parametrize("page", HAS_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: Path, namespace: Namespace) -> None:
    document = BLOCKS.parse(page)
    document.namespace = namespace
    found = list(document.examples())
    assert found
    for example in found:
        example.evaluate()
        namespace.make_tables()
        namespace.run_tests()
        if "AUTOMATION" in namespace:
            assert conf.problems(namespace.pop("AUTOMATION")) == []


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each ``manage.py`` command on a page."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for line in re.findall(r"^\$ (?:.*&& )?python manage\.py (.*)$", block, re.MULTILINE):
            yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", [*PAGES, AGENTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist_and_take_their_options(page: Path) -> None:
    known = get_commands()
    for name, *arguments in commands(page):
        assert name in known, f"manage.py {name}"
        if name.startswith("automation_"):
            load_command_class(known[name], name).create_parser("manage.py", name).parse_args(arguments)
