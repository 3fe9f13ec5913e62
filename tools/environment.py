"""Create a virtual environment and install this project and the named dependency groups in it.

    python tools/environment.py .venv test dev demo [--lowest] [--django 5.2]

Runs with the interpreter of the new environment, without any package installed.
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
UV_SETTINGS = {
    uv: os.environ[pip]
    for uv, pip in {
        "UV_DEFAULT_INDEX": "PIP_INDEX_URL",
        "UV_INDEX": "PIP_EXTRA_INDEX_URL",
        "UV_FIND_LINKS": "PIP_FIND_LINKS",
        "SSL_CERT_FILE": "PIP_CERT",
    }.items()
    if pip in os.environ
}
"""The settings of pip in the environment, by their names for uv."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="*")
    parser.add_argument("--lowest", action="store_true", help="install the oldest versions that pyproject.toml allows")
    parser.add_argument("--django", default="", help="a minor version such as 5.2, or main")
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036
        raise SystemExit(
            f"This is Python {sys.version.split()[0]}, but Python 3.11 or newer is required: set PYTHON=python3.x."
        )
    create(options.folder, options.groups, lowest=options.lowest, django=options.django)


def create(folder: Path, groups: list[str], *, lowest: bool = False, django: str = "") -> None:
    python = create_empty(folder)
    packages = [*requirements(groups), *(lower_bounds() if lowest else []), *django_requirement(django)]
    install(python, "--editable", str(ROOT), *packages)


def create_empty(folder: Path) -> Path:
    """Create a virtual environment without any package but pip, unless it exists; return its interpreter."""
    try:
        venv.create(folder, with_pip=True, clear=False, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"This Python cannot create virtual environments ({error}). On Debian, run: apt-get install python3-venv"
        ) from error
    return folder / "bin" / "python"


def install(python: Path, *packages: str) -> None:
    """Install with uv, in seconds instead of minutes. With pip if uv cannot be installed, or cannot install these: an
    index that only the configuration of pip names, for example."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = [str(python), "-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
    if (
        subprocess.run([*pip, "uv"], check=False, capture_output=True).returncode
        or subprocess.run([*uv, *packages], check=False, cwd=ROOT, env={**UV_SETTINGS, **os.environ}).returncode
    ):
        subprocess.run([*pip, *packages], check=True, cwd=ROOT)


def requirements(groups: list[str]) -> list[str]:
    """Return the requirements of dependency groups in pyproject.toml (PEP 735, which older versions of pip lack)."""
    table = pyproject()["dependency-groups"]
    found: list[str] = []
    for group in groups:
        for entry in table[group]:
            found += [entry] if isinstance(entry, str) else requirements([entry["include-group"]])
    return found


def lower_bounds() -> list[str]:
    """Return the dependencies of this project and its extras, each pinned to the oldest allowed version."""
    project = pyproject()["project"]
    extras = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    return [entry.replace(">=", "==") for entry in [*project["dependencies"], *extras]]


def django_requirement(version: str) -> list[str]:
    """Return the requirement for a minor version of Django or its branch ``main``; empty without a version."""
    if not version:
        return []
    return ["django @ " + DJANGO_MAIN if version == "main" else f"django=={version}.*"]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


if __name__ == "__main__":
    main()
