"""The documentation covers all settings, commands, options, checks and folders, and its links and names are valid."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandParser

from django_ai import automation
from django_ai.automation.conf import Conf
from django_ai.automation.console.commands.verbs import VERBS
from django_ai.automation.queues import signals

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "django_ai" / "automation"
REFERENCE = ROOT / "docs" / "reference"
MAP = (ROOT / "CONTRIBUTING.md").read_text().partition("| path | subject |")[2].partition("\n\n")[0]
PAGES = [
    *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
    *ROOT.glob("*.md"),
    ROOT / "tests" / "README.md",
]
INTERNAL_OPTIONS = {"--lifeline", "--started"}


def first_cells(text: str) -> list[str]:
    """Return the first cell of each row that begins with code."""
    return re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)


def reference(page: str) -> str:
    return (REFERENCE / f"{page}.md").read_text()


def commands() -> list[str]:
    return sorted(name for name in get_commands() if name.partition("_")[0] == "automation")


def test_every_setting_is_in_the_docs():
    assert [each.name for each in fields(Conf) if f"| `{each.name}` |" not in reference("settings")] == []


def test_every_command_is_in_the_docs():
    modules = {path.stem for path in PACKAGE.glob("*/management/commands/*.py")} - {"__init__"}
    assert sorted(modules) == commands()
    assert [name for name in commands() if f"| `{name}` |" not in reference("commands")] == []


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_and_its_options_are_in_the_docs(name):
    section = reference("commands").partition(f"\n### automation {name}\n")[2].partition("\n##")[0]
    parser = CommandParser()
    VERBS[name]().add_to(parser)
    options = {each for action in parser._actions for each in action.option_strings if each.startswith("--")}
    options -= {"--help", "--json", "--reason", "--actor"}
    assert section.strip()
    assert set(re.findall(r"`(--[\w-]+)", "\n".join(first_cells(section)))) == options


@pytest.mark.parametrize("name", sorted(set(commands()) - {"automation"}))
def test_every_option_of_a_command_is_in_the_docs(name):
    section = reference("commands").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    general = {"--help", "--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color"}
    general |= {"--force-color", "--skip-checks", *INTERNAL_OPTIONS}
    options = {each for action in parser._actions for each in action.option_strings if each.startswith("--")} - general
    assert [each for each in sorted(options) if f"`{each}" not in section] == []
    documented = set(re.findall(r"`(--[\w-]+)", "\n".join(first_cells(section))))
    assert sorted(documented - options) == []


def test_every_check_has_an_id_of_its_own_and_is_in_the_docs():
    sources = [path.read_text() for path in PACKAGE.rglob("checks.py")]
    found = [code for source in sources for code in re.findall(r'"automation\.(\w+)"', source)]
    assert len({code[1:] for code in found}) == len(found), "two checks have the same number"
    rows = "\n".join(first_cells(reference("checks")))
    assert sorted(re.findall(r"`(?:automation\.)?([EWI]\d{3})`", rows)) == sorted(found)


def test_every_public_name_is_in_the_docs():
    pages = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    assert [name for name in automation.__all__ if not re.search(rf"[.`\s]{name}\b", pages)] == []


def test_every_signal_is_in_the_docs():
    sent = [name for name, value in vars(signals).items() if isinstance(value, signals.Signal)]
    assert [name for name in sent if f"| `{name}(" not in reference("signals")] == []


def test_the_fields_and_methods_that_the_docs_name_exist():
    models = {model.__name__: model for model in apps.get_models() if model.__module__.startswith("django_ai.")}
    sections = re.split(r"^## ", reference("models"), flags=re.MULTILINE)[1:]
    named = {section.split("\n", 1)[0]: section for section in sections}
    missing = []
    for name, model in models.items():
        for row in first_cells(named.get(name, "")):
            for each in re.findall(r"`(\w+)(?:\([^`]*)?`", row):
                if not hasattr(model, each) and each not in {field.name for field in model._meta.get_fields()}:
                    missing.append(f"{name}.{each}")
    assert missing == []
    assert {"Event", "WorkflowRun", "AgentRun"} <= named.keys()


def test_the_map_names_paths_that_exist():
    paths = re.findall(r"`([^`]+)`", "\n".join(first_cells(MAP)))
    assert paths
    assert [path for path in paths if not (PACKAGE / path).exists()] == []


def test_every_folder_is_on_the_map():
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("__init__.py")} - {Path()}
    left_out = {folder for folder in folders if {"migrations", "management"} & set(folder.parts)}
    assert [str(folder) for folder in sorted(folders - left_out) if f"`{folder}/`" not in MAP] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and Sphinx generate for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / link if link else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            wrong.append(f"{link}#{anchor}")
    assert wrong == []
