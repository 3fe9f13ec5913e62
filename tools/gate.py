"""The gate: what must pass before anything lands. ``make test`` calls it, and so does CI.

Lint and types first, then the whole suite on SQLite and on PostgreSQL, and on the newest Python and Django that this
machine has an interpreter for. It closes with the test runner's own summary line. Anything that is missing is named;
on a laptop it is skipped, with ``CI=true`` it fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.postgres import NoServerError, server  # noqa: E402

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
NEWEST = ("3.14", "3.13", "3.12")


def main() -> None:
    run("ruff check", [tool("ruff"), "check", "."])
    run("ruff format", [tool("ruff"), "format", "--check", "."])
    run("mypy", [tool("mypy")])
    coverage = [
        "--cov",
        "--cov-branch",
        "--cov-report=",
    ]
    suite("SQLite", Path(sys.executable), {"TEST_DATABASE": "sqlite"}, *coverage)
    with postgres() as environment:
        if environment is not None:
            suite(
                "PostgreSQL",
                Path(sys.executable),
                {"TEST_DATABASE": "postgresql", **environment},
                "--cov-append",
                *coverage,
            )
        run("coverage", [sys.executable, "-m", "coverage", "report"])
        newest = newest_python()
        if newest is not None:
            for database, extra in (("sqlite", {}), ("postgresql", environment)):
                if extra is not None:
                    label = f"newest Python and Django, {database}"
                    suite(label, newest, {"TEST_DATABASE": database, **extra}, "--deselect", "tests/runtimes")


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def run(title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    print(f"\n== {title}", flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=False)
    if done.returncode:
        print(f"\nThe gate is shut: {title} failed.", flush=True)
        raise SystemExit(done.returncode)


def suite(title: str, python: Path, environment: dict[str, str], *options: str) -> None:
    run(f"tests: {title}", [str(python), "-m", "pytest", "-q", *options], environment)


def missing(what: str) -> None:
    if IN_CI:
        raise SystemExit(f"The gate is shut: {what}")
    print(f"\n== skipped: {what}", flush=True)


@contextlib.contextmanager
def postgres() -> Iterator[dict[str, str] | None]:
    """Yield how to reach PostgreSQL, or None where there is none."""
    with contextlib.ExitStack() as stack:
        found = None
        try:
            found = stack.enter_context(server())
        except NoServerError as error:
            missing(str(error))
        yield found


def newest_python() -> Path | None:
    """Return the interpreter of an environment with the newest Python here and the newest Django for it.

    None where the gate's own Python is the newest, or no other is found in PATH or a version manager.
    """
    for version in NEWEST:
        if sys.version_info[:2] >= tuple(map(int, version.split("."))):
            return None
        for candidate in candidates(version):
            if (
                subprocess.run([candidate, "-c", "import venv, ensurepip, sqlite3"], capture_output=True).returncode
                == 0
            ):
                folder = ROOT / f".venv-{version}"
                subprocess.run([candidate, str(ROOT / "tools" / "environment.py"), str(folder), "test"], check=True)
                return folder / "bin" / "python"
    missing_newest = f"no Python of {', '.join(NEWEST)} was found; only {sys.version.split()[0]} was tested"
    print(f"\n== skipped: {missing_newest}", flush=True)
    return None


def candidates(version: str) -> Iterator[str]:
    """Yield interpreters of ``version``: in PATH, then in pyenv, uv and asdf."""
    homes = (
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions",
        Path.home() / ".local/share/uv/python",
        Path.home() / ".asdf/installs/python",
    )
    for home in homes:
        for found in sorted(home.glob(f"*{version}*/bin/python3"), reverse=True):
            yield str(found)
    in_path = shutil.which(f"python{version}")
    if in_path:
        yield in_path


if __name__ == "__main__":
    main()
