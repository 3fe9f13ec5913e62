"""Make a virtual environment with this project and the named dependency groups in it.

    python tools/environment.py .venv test dev demo [--lowest] [--django 5.2]

Runs on the bare interpreter that the environment is for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DJANGO_MAIN = "https://github.com/django/django/archive/refs/heads/main.tar.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="*")
    parser.add_argument("--lowest", action="store_true", help="the oldest versions that pyproject.toml allows")
    parser.add_argument("--django", default="", help="a minor version such as 5.2, or main")
    wanted = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036
        raise SystemExit(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}; set PYTHON=python3.x")
    make(wanted.folder, wanted.groups, lowest=wanted.lowest, django=wanted.django)


def make(folder: Path, groups: list[str], *, lowest: bool = False, django: str = "") -> None:
    try:
        venv.create(folder, with_pip=True, clear=False, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"This Python cannot make virtual environments ({error}). On Debian: apt-get install python3-venv."
        ) from error
    python = folder / "bin" / "python"
    asked = [*requirements(groups), *(lower_bounds() if lowest else []), *django_of(django)]
    install(python, "--editable", str(ROOT), *asked)


def install(python: Path, *asked: str) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *asked], check=True, cwd=ROOT)


def requirements(groups: list[str]) -> list[str]:
    """Return what the dependency groups of pyproject.toml ask for (PEP 735; older pips do not know them)."""
    table = pyproject()["dependency-groups"]
    found: list[str] = []
    for group in groups:
        for entry in table[group]:
            found += [entry] if isinstance(entry, str) else requirements([entry["include-group"]])
    return found


def lower_bounds() -> list[str]:
    """Return what a project needs of ours and of its extras, each pinned to the oldest version that is allowed."""
    project = pyproject()["project"]
    extras = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    return [entry.replace(">=", "==") for entry in [*project["dependencies"], *extras]]


def django_of(version: str) -> list[str]:
    """Return what to install for a minor version of Django, or for its branch ``main``; nothing without one."""
    if not version:
        return []
    return ["django @ " + DJANGO_MAIN if version == "main" else f"django=={version}.*"]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


if __name__ == "__main__":
    main()
