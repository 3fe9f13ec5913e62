"""The wheel contains everything that the package needs, and no files of other distributions."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from tools import package

import django_ai.automation


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    return package.build(tmp_path_factory.mktemp("dist"))[0]


def changed(wheel: Path, folder: Path, *, left_out: str = "", added: str = "") -> Path:
    """Return a copy of a wheel without the files whose names contain ``left_out``, and with the file ``added``."""
    copy = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            if not left_out or left_out not in name:
                target.writestr(name, source.read(name))
        if added:
            target.writestr(added, "")
    return copy


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    assert package.problems_of(wheel) == []


@pytest.mark.parametrize(
    "left_out", ["py.typed", "AGENTS.md", "workflows/migrations/0001", "queues/management", "/de/LC_MESSAGES"]
)
def test_a_file_that_is_missing_is_found(wheel, tmp_path, left_out):
    assert [each for each in package.problems_of(changed(wheel, tmp_path, left_out=left_out)) if "missing" in each]


@pytest.mark.parametrize("added", ["django_ai/__init__.py", "tests/__init__.py"])
def test_a_file_too_many_is_found(wheel, tmp_path, added):
    assert f"unexpected file: {added}" in package.problems_of(changed(wheel, tmp_path, added=added))


def test_the_description_has_no_relative_links(wheel):
    with zipfile.ZipFile(wheel) as content:
        (metadata,) = [content.read(name).decode() for name in content.namelist() if name.endswith("/METADATA")]
    targets = re.findall(r"\]\(([^)]+)\)", metadata)
    assert "https://github.com/django-ai-automation/django-ai-automation/blob/main/docs/tutorial/index.md" in targets
    assert [each for each in targets if not each.startswith("https://")] == []


def test_there_is_one_source_of_the_version(wheel):
    assert wheel.name.split("-")[1] == django_ai.automation.__version__
    assert package.problems_of(wheel, f"v{django_ai.automation.__version__}") == []
    assert "tag 'v9.9.9'" in package.problems_of(wheel, "v9.9.9")[0]


def test_the_build_needs_nothing_outside_the_source_distribution(wheel, tmp_path):
    sdist = wheel.parent / wheel.name.replace("-py3-none-any.whl", ".tar.gz")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} >= {"src", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"}
