"""The docs name what there is: settings, commands, checks, modules. And links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from django_ai.automation.conf import Conf

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "django_ai" / "automation"
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
MAP = (ROOT / "CONTRIBUTING.md").read_text()
COMMON = {"__init__", "models", "admin", "apps", "checks"}
"""Modules that each floor has."""
FACADES = {"core", "services"}


def test_every_setting_is_in_the_docs():
    assert [each.name for each in fields(Conf) if f"`{each.name}`" not in SETTINGS] == []


def test_every_command_is_in_the_docs():
    commands = {path.stem for path in PACKAGE.glob("*/management/commands/*.py")} - {"__init__"}
    assert [name for name in sorted(commands) if f"| `{name}` |" not in SETTINGS] == []


def test_every_check_has_an_id_of_its_own_and_is_in_the_docs():
    sources = [path.read_text() for path in PACKAGE.glob("*/checks.py")]
    found = [code for source in sources for code in re.findall(r'"automation\.(\w+)"', source)]
    assert len({code[1:] for code in found}) == len(found), "two checks have one number"
    documented = re.findall(r"`(?:automation\.)?([EWI]\d{3})`", SETTINGS)
    assert sorted(documented) == sorted(found)


@pytest.mark.parametrize("floor", ["queues", "events", "workflows", "agents", "testing"])
def test_every_module_is_on_the_map_of_its_floor(floor):
    rows = MAP.partition(f"| **{floor}** |")[2].partition("| **")[0]
    modules = {path.stem for path in (PACKAGE / floor).glob("*.py")} - COMMON - FACADES
    assert [name for name in sorted(modules) if f"`{name}`" not in rows] == []


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")], ids=lambda path: path.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
