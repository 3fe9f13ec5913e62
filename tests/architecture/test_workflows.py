"""CI calls only make targets that exist, and tests every supported version of Python and Django."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
TESTS = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]


def versions(prefix: str) -> list[str]:
    """Return the versions in the classifiers that start with ``prefix``."""
    return [each.removeprefix(prefix) for each in CLASSIFIERS if re.fullmatch(re.escape(prefix) + r"\d+\.\d+", each)]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_calls_make_once_with_a_target_that_exists(path):
    text = path.read_text()
    called = re.findall(r"run: make ([a-z-]+)", text)
    assert called
    assert set(called) <= TARGETS
    jobs = re.split(r"^  (?=\w[\w-]*:$)", text.partition("\njobs:\n")[2], flags=re.M)[1:]
    assert all(job.count("run: make") == 1 for job in jobs if "actions/checkout" in job)


@pytest.mark.parametrize("version", versions("Programming Language :: Python :: "))
def test_a_python_of_the_classifiers_is_tested(version):
    (pythons,) = re.findall(r"^ +python: \[(.*)\]$", TESTS, re.M)
    assert f'"{version}"' in pythons


@pytest.mark.parametrize("version", versions("Framework :: Django :: "))
def test_a_django_of_the_classifiers_is_tested(version):
    (djangos,) = re.findall(r"^ +django: \[(.*)\]$", TESTS, re.M)
    included = re.findall(r'^ +django: "([\d.]+)"$', TESTS.partition("include:")[2], re.M)
    assert version in [*re.findall(r"[\d.]+", djangos), *included]
