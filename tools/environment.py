"""Make a virtual environment with this project and the named dependency groups in it.

    python tools/environment.py .venv test dev demo [--django 6.1]

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

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="*")
    parser.add_argument("--django", default="", help="a version of Django, else the newest for this Python")
    wanted = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036
        raise SystemExit(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}; set PYTHON=python3.x")
    make(wanted.folder, wanted.groups, wanted.django)


def make(folder: Path, groups: list[str], django: str = "") -> None:
    try:
        venv.create(folder, with_pip=True, clear=False, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"This Python cannot make virtual environments ({error}). On Debian: apt-get install python3-venv."
        ) from error
    python = folder / "bin" / "python"
    asked = [*requirements(groups), *([f"django=={django}.*"] if django else [])]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--editable", str(ROOT), *asked], check=True, cwd=ROOT)


def requirements(groups: list[str]) -> list[str]:
    """Return what the dependency groups of pyproject.toml ask for (PEP 735; older pips do not know them)."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    found: list[str] = []
    for group in groups:
        for entry in table[group]:
            found += [entry] if isinstance(entry, str) else requirements([entry["include-group"]])
    return found


if __name__ == "__main__":
    main()
