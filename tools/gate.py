"""The gate: what must pass before anything lands, in two tiers, and the full matrix.

``make test`` is the first: lint, types, and every test that is neither ``slow`` nor ``alone``, on SQLite and on
PostgreSQL side by side. ``make test-ci`` is the rest: the slow tests on both, all that needs a database on MariaDB,
the quick ones on SQLite (on PostgreSQL the lifecycle) with the newest Python and Django that this machine has an
interpreter for, the lifecycle once with a clock that moves at each reading and once with a replica that lags, the
audit of dependencies; then the tests that start real workers (the mark ``alone``), all databases at once; last, with
nothing beside them, those of the runtimes, which say how late a worker may be, on this Python and the newest. But for
the lifecycle, no test runs twice on one database with one Python. Coverage is taken in the second tier. Both close
with the test runner's own summary line.

Whatever is missing is named, with a way to start it, and skipped; but what ``AUTOMATION_REQUIRE`` names, as CI does,
must be there. ``make test-all`` (the tier ``all``) runs both, adds the oldest versions that pyproject.toml allows on
each database, all crash points in each way on each, the runtimes on each, and a soak of ten minutes on each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import services  # noqa: E402

from tools import environment, mariadb, postgres  # noqa: E402

NEWEST = ("3.14", "3.13", "3.12")
SOAK_MINUTES = 10
RUNTIMES = "tests/runtimes"
QUICK_START = f"{RUNTIMES}/test_quick_start.py"
NO_DATABASE = ("tests/unit", "tests/architecture")
FAULTS = ("tests/faults", "tests/scenarios")
LIFECYCLE = "tests/lifecycle"
QUICK = "not alone and not slow"
SLOW = "slow and not alone"
MOVING = f"{QUICK} and not exact_times"
TOGETHER = "not alone"
WORKERS = "alone"
NOTHING_SELECTED = 5  # the exit code of pytest


@dataclass(frozen=True)
class Suite:
    """One run of the tests: with which Python, on which database, which tests, and whether coverage looks on."""

    title: str
    python: Path
    environment: dict[str, str]
    options: tuple[str, ...] = ("-m", TOGETHER)
    covered: bool = False
    may_be_empty: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", nargs="?", choices=("test", "ci", "all"), default="test")
    tier = parser.parse_args().tier
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gate-")))
        if tier != "ci":
            check()
            together(list(first_tier(dict(found_databases(stack, mariadb_too=False)))), scratch)
        if tier != "test":
            second_tier(stack, scratch, everything=tier == "all")


def check() -> None:
    """Lint, spelling and types."""
    run("ruff check", [tool("ruff"), "check", "."])
    run("ruff format", [tool("ruff"), "format", "--check", "."])
    run("codespell", [sys.executable, "-m", "codespell_lib"])
    run("mypy", [tool("mypy")])
    with missing_is_said("pyright"):
        if reason := services.missing("pyright"):
            raise LookupError(reason)
        run("pyright", [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable])


def first_tier(databases: dict[str, dict[str, str]]) -> Iterator[Suite]:
    for title, database in databases.items():
        # On SQLite a sample of the rest runs, too: what a second database would say of it, the second tier asks.
        left_out = () if title == "SQLite" else (*NO_DATABASE, *FAULTS)
        yield Suite(title, Path(sys.executable), database, ("-m", QUICK, *ignoring(left_out)))


def ignoring(folders: Iterable[str]) -> list[str]:
    return [f"--ignore={folder}" for folder in folders]


def second_tier(stack: contextlib.ExitStack, scratch: Path, *, everything: bool) -> None:
    databases = dict(found_databases(stack))
    say_what_is_missing()
    run("audit", [sys.executable, "tools/audit.py"])
    newest = newest_python(["test", "mariadb"] if everything and "MariaDB" in databases else ["test"])
    together(list(plan(databases, newest, everything=everything)), scratch)
    coverage = {"COVERAGE_FILE": str(scratch / ".coverage")}
    run("coverage", [sys.executable, "-m", "coverage", "combine", "-q", str(scratch)], coverage)
    run("coverage report", [sys.executable, "-m", "coverage", "report"], coverage)
    together(list(with_workers(databases)), scratch)
    for title, database in databases.items() if everything else ():
        soak = [sys.executable, "-m", "tests.support.soak.run", "--minutes", str(SOAK_MINUTES)]
        run(f"soak: {title}", [*soak, "--database", database["TEST_DATABASE"]])
    for title, python, database in runtimes(databases, newest, everything=everything):
        run(f"the runtimes: {title}", [*pytest_of(python), "-m", WORKERS, RUNTIMES], database)
    if not everything:
        run("the quick start", [*pytest_of(Path(sys.executable)), QUICK_START], databases["SQLite"])


def found_databases(stack: contextlib.ExitStack, *, mariadb_too: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each database by its title, with the environment that leads there; servers run as long as ``stack``."""
    yield "SQLite", {"TEST_DATABASE": "sqlite"}
    with missing_is_said("postgresql"):
        found = stack.enter_context(postgres.server(quick=True))
        yield "PostgreSQL", {"TEST_DATABASE": "postgresql", **found}
    if not mariadb_too:
        return
    with missing_is_said("mariadb"):
        install_driver()
        found = stack.enter_context(mariadb.server())
        yield "MariaDB", {"TEST_DATABASE": "mariadb", **found}


def say_what_is_missing() -> None:
    for name in services.SERVICES:
        with missing_is_said(name):
            if reason := services.missing(name):
                raise LookupError(reason)


def plan(databases: dict[str, dict[str, str]], newest: Path | None, *, everything: bool) -> Iterator[Suite]:
    """Yield the suites of the second tier that run side by side, the longest first."""
    for number, (title, database) in sorted(enumerate(databases.items()), reverse=True):
        # Of the three ways to die at a crash point each database goes through another one.
        share = {} if everything else {"CRASH_POINTS": f"{number}/3"}
        # What the first tier has run already is not run again; where it ran nothing, all of it is.
        marks = {"SQLite": SLOW, "PostgreSQL": SLOW, "MariaDB": TOGETHER}[title]
        # The faults are a suite of their own where they are many, so that the suites end at about the same time.
        left_out = () if title == "SQLite" else FAULTS
        without = NO_DATABASE if title == "MariaDB" else ()
        options = ("-m", marks, *ignoring((*left_out, *without)))
        few = marks == SLOW
        yield Suite(title, Path(sys.executable), {**database, **share}, options, covered=True, may_be_empty=few)
        if left_out:
            options = ("-m", TOGETHER, *FAULTS)
            yield Suite(f"{title}, faults", Path(sys.executable), {**database, **share}, options, covered=True)
    moving = {**databases["SQLite"], "TEST_CLOCK_STEP": "1"}
    yield Suite("A clock that moves", Path(sys.executable), moving, ("-m", MOVING, LIFECYCLE))
    lagging = {**databases["SQLite"], "TEST_REPLICA": "1"}
    yield Suite("A replica that lags", Path(sys.executable), lagging, ("-m", QUICK, LIFECYCLE))
    for title, database in databases.items() if newest else ():
        if everything or title != "MariaDB":
            marks = TOGETHER if everything else QUICK
            # What the newest pair says on SQLite of all, PostgreSQL is asked of the lifecycle.
            only = (LIFECYCLE,) if title == "PostgreSQL" and not everything else ()
            yield Suite(f"{title}, newest Python and Django", newest, database, ("-m", marks, *only), covered=True)
    if everything:
        groups = ["test", "mariadb"] if "MariaDB" in databases else ["test"]
        lowest = folder_of("lowest", sys.executable, *groups, "--lowest")
        for title, database in databases.items():
            yield Suite(f"{title}, oldest versions", lowest, database)


def runtimes(
    databases: dict[str, dict[str, str]], newest: Path | None, *, everything: bool
) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """Yield where the tests of the runtimes run: title, interpreter, database."""
    for title, database in databases.items():
        if everything or title == "PostgreSQL":
            yield title, Path(sys.executable), database
    for title, database in databases.items():
        if newest is not None and title != "MariaDB":
            yield f"{title}, newest Python and Django", newest, database


def with_workers(databases: dict[str, dict[str, str]]) -> Iterator[Suite]:
    """Yield the suites that start real workers, but for those of the runtimes."""
    for title in sorted(databases, key=lambda title: title != "PostgreSQL"):  # the longest first
        options = ("-m", WORKERS, f"--ignore={RUNTIMES}")
        yield Suite(f"{title}, with real workers", Path(sys.executable), databases[title], options)


def together(wanted: list[Suite], scratch: Path) -> None:
    """Run suites side by side, and show them one after the other."""

    def perform(number: int) -> tuple[int, Path]:
        suite, log = wanted[number], scratch / f"{number}.log"
        # Redis has numbered databases: each suite has its own.
        apart = {"TEST_REDIS_URL": f"{services.REDIS_URL.rpartition('/')[0]}/{6 + number}"}
        apart["COVERAGE_FILE"] = str(scratch / f".coverage.{number}")
        covering = ("--cov", "--cov-branch", "--cov-report=") if suite.covered else ()
        command = [*pytest_of(suite.python), *suite.options, *covering]
        with log.open("wb") as output:
            known = {**os.environ, **suite.environment, **apart}
            done = subprocess.run(command, cwd=ROOT, env=known, stdout=output, stderr=output, check=False)
        return done.returncode, log

    failed = []
    # One more than there are cores: half the time a suite waits for its database.
    with ThreadPoolExecutor((os.cpu_count() or 2) + 1) as slots:
        for suite, (code, log) in zip(wanted, slots.map(perform, range(len(wanted))), strict=True):
            print(f"\n== tests: {suite.title}\n{log.read_text(errors='replace')}", flush=True)
            empty = suite.may_be_empty and code == NOTHING_SELECTED
            failed += [suite.title] if code and not empty else []
    if failed:
        raise SystemExit(f"\nFAILED: {', '.join(failed)}.")


def pytest_of(python: Path) -> list[str]:
    return [str(python), "-m", "pytest", "-q"]


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def run(title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    print(f"\n== {title}", flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=False)
    if done.returncode:
        print(f"\nFAILED: {title}.", flush=True)
        raise SystemExit(done.returncode)


@contextlib.contextmanager
def missing_is_said(name: str) -> Iterator[None]:
    """Go on without ``name`` where the block says that it is missing; or shut the gate, where it is required."""
    try:
        yield
    except (postgres.NoServerError, mariadb.NoServerError, LookupError) as error:
        if name in services.required():
            raise SystemExit(f"FAILED: AUTOMATION_REQUIRE names {name}. {error}") from error
        print(f"\n== skipped: {error}", flush=True)


def install_driver() -> None:
    """Install the driver of MariaDB, which is compiled here. Raises ``NoServerError``."""
    try:
        environment.install(Path(sys.executable), *environment.requirements(["mariadb"]))
    except subprocess.CalledProcessError as error:
        raise mariadb.NoServerError(f"The driver of MariaDB cannot be installed: {mariadb.HOW}") from error


def newest_python(groups: list[str]) -> Path | None:
    """Return the interpreter of an environment with the newest Python here and the newest Django for it.

    None where the gate's own Python is the newest, or no other is found in PATH or a version manager.
    """
    for version in NEWEST:
        if sys.version_info[:2] >= tuple(map(int, version.split("."))):
            return None
        for candidate in candidates(version):
            needed = [candidate, "-c", "import venv, ensurepip, sqlite3"]
            if subprocess.run(needed, capture_output=True, check=False).returncode == 0:
                return folder_of(version, candidate, *groups)
    missing_newest = f"no Python of {', '.join(NEWEST)} was found; only {sys.version.split()[0]} was tested"
    print(f"\n== skipped: {missing_newest}", flush=True)
    return None


def folder_of(name: str, python: str, *asked: str) -> Path:
    """Make the environment ``.venv-NAME`` and return its interpreter."""
    folder = ROOT / f".venv-{name}"
    subprocess.run([python, str(ROOT / "tools" / "environment.py"), str(folder), *asked], check=True)
    return folder / "bin" / "python"


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
