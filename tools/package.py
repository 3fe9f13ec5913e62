"""Build the distributions and check what they contain: ``make package``.

    python tools/package.py [dist] [--tag v0.1.0]

A wheel is right when it holds the whole package and nothing else, and no ``django_ai/__init__.py``: ``django_ai`` is a
namespace, in which other distributions may have packages, too.
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
    *(f"{PACKAGE}/{app}/migrations/0001_initial.py" for app in APPS),
    *(f"{PACKAGE}/{app}/locale/{language}/LC_MESSAGES/django.mo" for app in APPS for language in ("de", "es", "fr")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    parser.add_argument("--tag", default="", help="the tag of the release, which must name the version")
    wanted = parser.parse_args()
    wheel, sdist = build(wanted.folder)
    if problems := problems_of(wheel, wanted.tag):
        raise SystemExit("\n".join([f"{wheel.name} is wrong:", *problems]))
    print(f"{wheel.name} and {sdist.name} are in {wanted.folder}.")


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the source distribution into ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def problems_of(wheel: Path, tag: str = "") -> list[str]:
    """Return what is wrong with a wheel: one line a problem."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        version = Parser().parsestr(archive.read(metadata).decode())["Version"]
    info = metadata.partition("/")[0]
    contents = {name for name in names if not name.startswith(f"{info}/")}
    wanted = sources()
    found = [f"is missing: {name}" for name in sorted((wanted | set(REQUIRED)) - contents)]
    found += [f"does not belong there: {name}" for name in sorted(contents - wanted)]
    found += [f"is a regular package: {name}" for name in contents if name == "django_ai/__init__.py"]
    if tag and tag != f"v{version}":
        found.append(f"the tag is {tag!r} and the version {version}: set __version__, or tag v{version}")
    return found


def sources() -> set[str]:
    """Return the files of the package, as a wheel names them."""
    return {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


if __name__ == "__main__":
    main()
