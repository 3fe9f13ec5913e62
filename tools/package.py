"""Build the distributions and check what they contain: ``make package``.

    python tools/package.py [dist] [--tag v0.1.0]

A correct wheel contains the whole package, nothing else, and no ``django_ai/__init__.py``: ``django_ai`` is a namespace
package, to which other distributions may add packages.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGE = "django_ai/automation"
APPS = ("queues", "events", "workflows", "agents")
REQUIRED = (
    f"{PACKAGE}/py.typed",
    f"{PACKAGE}/AGENTS.md",
    *(f"{PACKAGE}/{app}/migrations/0001_initial.py" for app in APPS),
    *(f"{PACKAGE}/{app}/locale/{language}/LC_MESSAGES/django.mo" for app in APPS for language in ("de", "es", "fr")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    parser.add_argument("--tag", default="", help="the tag of the release, which must name the version")
    options = parser.parse_args()
    wheel, sdist = build(options.folder)
    if problems := problems_of(wheel, options.tag):
        raise SystemExit("\n".join([f"FAILED: {wheel.name} is not correct:", *problems]))
    print(f"{wheel.name} and {sdist.name} are in {options.folder}.")


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the source distribution into ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def problems_of(wheel: Path, tag: str = "") -> list[str]:
    """Return the problems of a wheel, one line each."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        version = Parser().parsestr(archive.read(metadata).decode())["Version"]
    info = metadata.partition("/")[0]
    contents = {name for name in names if not name.startswith(f"{info}/")}
    expected = sources()
    found = [f"missing file: {name}" for name in sorted((expected | set(REQUIRED)) - contents)]
    found += [f"unexpected file: {name}" for name in sorted(contents - expected)]
    found += [f"not allowed in a namespace package: {name}" for name in contents if name == "django_ai/__init__.py"]
    if tag and tag != f"v{version}":
        found.append(f"tag {tag!r} does not match version {version}: set __version__, or use the tag v{version}")
    return found


def sources() -> set[str]:
    """Return the paths of the package's files in a wheel."""
    return {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


if __name__ == "__main__":
    main()
