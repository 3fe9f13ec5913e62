"""The gate: what must pass before anything lands. ``make test`` calls it, and so does CI.

Lint and types first, then the suite on SQLite and on PostgreSQL side by side, the same on the newest Python and Django
that this machine has an interpreter for, and last, by themselves, the tests that start real workers and watch the
clock. It closes with the test runner's own summary line. Anything that is missing is named;
on a laptop it is skipped, with ``CI=true`` it fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
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
    with postgres() as server_of, tempfile.TemporaryDirectory(prefix="gate-") as folder:
        databases = {"SQLite": {"TEST_DATABASE": "sqlite"}}
        if server_of is not None:
            # A Redis database of its own, too: the suites run at the same time.
            redis = {"TEST_REDIS_URL": "redis://127.0.0.1:6379/6"}
            databases["PostgreSQL"] = {"TEST_DATABASE": "postgresql", **server_of, **redis}
        here, scratch = Path(sys.executable), Path(folder)
        covered = [
            Suite(title, here, {**database, "COVERAGE_FILE": str(scratch / f".coverage.{title}")}, COVERED + QUIET)
            for title, database in databases.items()
        ]
        suites(covered, scratch)
        data = {"COVERAGE_FILE": str(scratch / ".coverage")}
        run("coverage", [sys.executable, "-m", "coverage", "combine", "-q", folder], data)
        run("coverage report", [sys.executable, "-m", "coverage", "report"], data)
        newest = newest_python()
        if newest is not None:
            titles = {title: f"newest Python and Django, {title}" for title in databases}
            suites([Suite(titles[title], newest, databases[title], QUIET) for title in databases], scratch)
        for title, database in databases.items():
            run(f"tests with real workers: {title}", [*pytest_of(here), *REAL], database)


REAL = ("-m", "alone")
"""Tests that start real workers and say how late they may be: nothing runs beside them."""
QUIET = ("-m", "not alone")
COVERED = ("--cov", "--cov-branch", "--cov-report=")


@dataclass(frozen=True)
class Suite:
    """One run of the tests: with which Python, on which database, with which options."""

    title: str
    python: Path
    environment: dict[str, str]
    options: tuple[str, ...]


def pytest_of(python: Path) -> list[str]:
    return [str(python), "-m", "pytest", "-q"]


def suites(wanted: list[Suite], scratch: Path) -> None:
    """Run suites side by side, one a core, and show them one after the other."""
    running = []
    for number, suite in enumerate(wanted):
        log = scratch / f"{number}.log"
        with log.open("wb") as output:
            command = [*pytest_of(suite.python), *suite.options]
            environment = {**os.environ, **suite.environment}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        running.append((suite, process, log))
    failed = []
    for suite, process, log in running:
        print(f"\n== tests: {suite.title}", flush=True)
        code = process.wait()
        print(log.read_text(errors="replace"), flush=True)
        if code:
            failed.append(suite.title)
    if failed:
        raise SystemExit(f"\nThe gate is shut: {', '.join(failed)} failed.")


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def run(title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    print(f"\n== {title}", flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=False)
    if done.returncode:
        print(f"\nThe gate is shut: {title} failed.", flush=True)
        raise SystemExit(done.returncode)


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
