"""The gate: what must pass before a change lands, in two tiers, and the full matrix.

Tier 1, ``make test``: lint; then in parallel the types and the tests that are neither ``slow`` nor ``alone``: half of
them on SQLite, the other half on PostgreSQL. The faults, the scenarios, and the tests of the console and of telemetry
are left to the second tier.

Tier 2, ``make test-ci``:

1. In parallel: half of the faults and scenarios on SQLite and a quarter on each server; the slow tests on SQLite and
   PostgreSQL; the other half of the first tier on PostgreSQL; a quarter of the tests that need a database on MariaDB;
   the console and telemetry on PostgreSQL. On SQLite, with the newest Python and Django for which this machine has an
   interpreter: the quick tests of the first tier, the console and telemetry; among them the lifecycle in other
   surroundings, with a clock that moves at each reading and a replica that stays empty. The pages in a browser, on
   PostgreSQL if it is available. The audit of the dependencies. Coverage is measured with the newest versions, where
   that costs next to nothing. A test that only some databases can run is in the share of each of these.
2. In parallel: the tests that start real workers (the mark ``alone``): all on PostgreSQL, in two parts, and half on
   each other database.
3. In parallel: the tests of the runtimes, with this Python and with the newest. They run after the others, because they
   measure how late a worker is.

Except for the lifecycle, no test runs twice on one database with one Python. Two cores have no time for more:
``make test-all`` runs all of them everywhere. Each suite ends with the summary line of
pytest.

A missing service is reported, with the way to start it, and its tests are skipped. A service that
``AUTOMATION_REQUIRE`` names, as CI does, must be available. ``make test-all`` (the tier ``all``) runs both tiers with
nothing left out, the oldest versions that pyproject.toml allows, all crash points with all three kinds of crash, the
runtimes, and a soak of ten minutes, each of these on each database.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import services  # noqa: E402
from tests.support.shares import PART  # noqa: E402
from tests.support.shares import VARIABLE as SHARE  # noqa: E402

from tools import environment, mariadb, postgres  # noqa: E402

NEWEST_PYTHONS = ("3.14", "3.13", "3.12")
SOAK_MINUTES = 10
MEMORY = "/dev/shm"
LEAST_FREE_BYTES = 4 << 30
RUNTIMES = "tests/runtimes"
QUICK_START = f"{RUNTIMES}/test_quick_start.py"
NO_DATABASE = ("tests/unit", "tests/architecture")
FAULTS = ("tests/faults", "tests/scenarios")
LIFECYCLE = "tests/lifecycle"
PAGES_AND_METRICS = ("tests/console", "tests/telemetry")
BROWSER = "tests/browser"
QUICK = "not alone and not slow"
SLOW = "slow and not alone"
MOVING = f"{QUICK} and not exact_times"
TOGETHER = "not alone"
WORKERS = "alone"
NOTHING_SELECTED = 5  # the exit code of pytest
SHARES = {"SQLite": "0/2", "PostgreSQL": "1/2"}
"""The share of the quick tests that the first tier runs on each database (see ``tests/support/shares.py``)."""
OTHER_SHARE = "0/4"
"""The share of the tests that the second tier runs on MariaDB, for which two cores have no more time."""


@dataclass(frozen=True)
class Suite:
    """One run of pytest: the Python, the database, the selected tests, and whether coverage is measured."""

    title: str
    python: Path
    environment: dict[str, str]
    options: tuple[str, ...] = ("-m", TOGETHER)
    covered: bool = False
    may_be_empty: bool = False


@dataclass(frozen=True)
class TypeCheck:
    """A type checker that runs beside the suites."""

    title: str
    command: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", nargs="?", choices=("test", "ci", "all"), default="test")
    tier = parser.parse_args().tier
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        if tier != "ci":
            lint()
            databases = dict(available_databases(stack, with_mariadb=False))
            *suites, last = first_tier_suites(databases)
            run_in_parallel([*suites, *type_checks(), last], scratch)
        if tier != "test":
            run_second_tier(stack, scratch, everything=tier == "all")


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create the folder for all files of the gate, its servers and its tests, and delete it at the end.

    It is in memory where the machine offers enough (containers often have only 64 MB): on SQLite each commit waits for
    the disk, which is half of the time of a test. No test needs its data after a power failure, and what a killed
    process leaves in memory is as complete as on a disk.
    """
    in_memory = os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= LEAST_FREE_BYTES
    with tempfile.TemporaryDirectory(prefix="gate-", dir=MEMORY if in_memory else None) as name:
        Path(name).chmod(0o1777)  # like /tmp: servers that root starts run as another user
        with mock.patch.dict(os.environ, TMPDIR=name), mock.patch.object(tempfile, "tempdir", name):
            yield Path(name)


def lint() -> None:
    run("ruff check", [tool("ruff"), "check", "."])
    run("ruff format", [tool("ruff"), "format", "--check", "."])
    run("codespell", [sys.executable, "-m", "codespell_lib"])
    run("import-linter", [tool("lint-imports"), "--no-cache"])


def type_checks() -> Iterator[TypeCheck]:
    yield TypeCheck("mypy", (tool("mypy"),))
    with skip_if_missing("pyright"):
        if reason := services.missing("pyright"):
            raise LookupError(reason)
        yield TypeCheck("pyright", (sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable))


def first_tier_suites(databases: dict[str, dict[str, str]]) -> Iterator[Suite]:
    for title, database in reversed(databases.items()):  # the longest first
        yield quick_suite(title, database, SHARES[title] if len(databases) > 1 else "")
    # These run on SQLite only. A suite of their own, to use all cores.
    title = "SQLite, tests that need no database"
    yield Suite(title, Path(sys.executable), databases["SQLite"], ("-m", QUICK, *NO_DATABASE))


def quick_suite(title: str, database: dict[str, str], share: str) -> Suite:
    """Return the suite of a share of the quick tests that need a database, or of all if ``share`` is empty."""
    ignored = ignoring((*NO_DATABASE, *FAULTS, BROWSER, *PAGES_AND_METRICS))
    title, variables = (f"{title}, share {share}", {**database, SHARE: share}) if share else (title, database)
    return Suite(title, Path(sys.executable), variables, ("-m", QUICK, *ignored))


def ignoring(folders: Iterable[str]) -> list[str]:
    return [f"--ignore={folder}" for folder in folders]


def run_second_tier(stack: contextlib.ExitStack, scratch: Path, *, everything: bool) -> None:
    databases = dict(available_databases(stack))
    report_missing_services()
    run("audit", [sys.executable, "tools/audit.py"])
    newest = newest_python(["test", "mariadb"] if everything and "MariaDB" in databases else ["test"])
    suites = list(second_tier_suites(databases, newest, everything=everything))
    run_in_parallel(suites, scratch)
    coverage = {"COVERAGE_FILE": str(scratch / ".coverage")}
    run("coverage", [sys.executable, "-m", "coverage", "combine", "-q", str(scratch)], coverage)
    run("coverage report", [sys.executable, "-m", "coverage", "report"], coverage)
    run_in_parallel(list(worker_suites(databases, everything=everything)), scratch, more=2)
    for title, database in databases.items() if everything else ():
        soak = [sys.executable, "-m", "tests.support.soak.run", "--minutes", str(SOAK_MINUTES)]
        run(f"soak: {title}", [*soak, "--database", database["TEST_DATABASE"]])
    run_in_parallel(list(runtime_suites(databases, newest, everything=everything)), scratch)
    if not everything:
        run("the quick start", [*pytest_of(Path(sys.executable)), QUICK_START], databases["SQLite"])


def available_databases(
    stack: contextlib.ExitStack, *, with_mariadb: bool = True
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the title of each database and the environment variables to reach it. Servers run as long as ``stack``."""
    yield "SQLite", {"TEST_DATABASE": "sqlite"}
    with skip_if_missing("postgresql"):
        found = stack.enter_context(postgres.server(quick=True))
        yield "PostgreSQL", {"TEST_DATABASE": "postgresql", **found}
    if not with_mariadb:
        return
    with skip_if_missing("mariadb"):
        install_driver()
        found = stack.enter_context(mariadb.server())
        yield "MariaDB", {"TEST_DATABASE": "mariadb", **found}


def report_missing_services() -> None:
    for name in services.SERVICES:
        with skip_if_missing(name):
            if reason := services.missing(name):
                raise LookupError(reason)


def second_tier_suites(
    databases: dict[str, dict[str, str]], newest: Path | None, *, everything: bool
) -> Iterator[Suite]:
    """Yield the suites of the second tier that run in parallel, the longest first."""
    # Each database runs another part of the faults and scenarios, and another part of the crash points in them, each in
    # one of the three kinds of crash. ``make test-all`` runs everything on each.
    of = len(databases)
    shared = {
        title: database
        if everything
        else {**database, "CRASH_POINTS": f"{3 * number}/{3 * of}", SHARE: share_of_faults(number, of)}
        for number, (title, database) in enumerate(databases.items())
    }
    here, slowest_first = Path(sys.executable), list(reversed(databases))

    def faults_of(title: str) -> Suite:
        # A suite of their own, to balance the duration of the suites.
        covered = newest is None and title == "SQLite"
        return Suite(f"{title}, faults", here, shared[title], ("-m", TOGETHER, *FAULTS), covered)

    first = "PostgreSQL" if "PostgreSQL" in databases else "SQLite"
    halves = {title: SHARES[other] for title, other in (("PostgreSQL", "SQLite"), ("SQLite", "PostgreSQL"))}
    for title in slowest_first:
        # The first tier has run one half of the quick tests on SQLite and the other on PostgreSQL. On SQLite, they all
        # run with the newest versions below.
        if title in halves and first == "PostgreSQL" and (title == first or newest is None or everything):
            yield quick_suite(title, databases[title], halves[title])
        marks = TOGETHER if title == "MariaDB" else SLOW
        ignored = (*FAULTS, BROWSER, *(NO_DATABASE if title == "MariaDB" else ()))
        # With the newest versions, the quick tests of the pages run on SQLite below.
        if title == "PostgreSQL" or (title == "SQLite" and (newest is None or everything)):
            ignored = (*ignored, *PAGES_AND_METRICS)
            yield Suite(f"{title}, pages and metrics", here, databases[title], ("-m", TOGETHER, *PAGES_AND_METRICS))
        options, is_slow = ("-m", marks, *ignoring(ignored)), marks == SLOW
        share = OTHER_SHARE if title == "MariaDB" and not everything else ""
        shown, database = f"{title}, share {share}" if share else title, {**databases[title], SHARE: share}
        yield Suite(shown, here, database, options, covered=newest is None and not is_slow, may_be_empty=is_slow)
        if title == slowest_first[0]:
            yield faults_of(first)
            # The lifecycle once more, in other surroundings, and with the newest versions.
            python, suffix = (here, "") if newest is None else (newest, ", newest Python and Django")
            other = {**databases["SQLite"], "TEST_CLOCK_STEP": "1", "TEST_REPLICA": "1"}
            moving = f"A clock that moves and a replica that lags{suffix}"
            yield Suite(moving, python, other, ("-m", MOVING, LIFECYCLE), covered=newest is not None)
            if newest is not None and not everything:
                quick = ("-m", QUICK, *ignoring((*FAULTS, BROWSER, LIFECYCLE)))
                yield Suite("SQLite, newest Python and Django", newest, databases["SQLite"], quick, covered=True)
    # How a page looks does not depend on the database.
    yield Suite(f"{first}, in a browser", here, databases[first], ("-m", TOGETHER, BROWSER))
    yield from (faults_of(title) for title in slowest_first if title != first)
    for title, database in databases.items() if newest and everything else ():
        yield Suite(f"{title}, newest Python and Django", newest, database, ("-m", TOGETHER), covered=True)
    if everything:
        groups = ["test", "mariadb"] if "MariaDB" in databases else ["test"]
        lowest = create_environment("lowest", sys.executable, *groups, "--lowest")
        for title, database in databases.items():
            yield Suite(f"{title}, oldest versions", lowest, database)


def share_of_faults(number: int, of: int) -> str:
    """Return the share of the faults and scenarios that the database ``number`` of ``of`` runs. SQLite is number 0.

    SQLite runs two parts, and each server one, because a fault takes twice as long on a server.
    """
    if of == 1:
        return ""
    return f"0,1/{of + 1}" if number == 0 else f"{number + 1}/{of + 1}"


def runtime_suites(databases: dict[str, dict[str, str]], newest: Path | None, *, everything: bool) -> Iterator[Suite]:
    """Yield the runs of ``tests/runtimes``. They wait most of the time, so each gets enough of two cores."""
    options = ("-m", WORKERS, RUNTIMES)
    for title, database in databases.items():
        if everything or title == "PostgreSQL":
            yield Suite(f"{title}, the runtimes", Path(sys.executable), database, options)
    for title, database in databases.items():
        if newest is not None and title != "MariaDB":
            yield Suite(f"{title}, the runtimes, newest Python and Django", newest, database, options)


def worker_suites(databases: dict[str, dict[str, str]], *, everything: bool) -> Iterator[Suite]:
    """Yield the suites that start real workers, except for ``tests/runtimes``: all of them on PostgreSQL, and half of
    them on each other database. ``make test-all`` runs all on each."""
    options = ("-m", WORKERS, f"--ignore={RUNTIMES}")
    for title in sorted(databases, key=lambda title: title != "PostgreSQL"):  # the longest first
        whole = everything or title == "PostgreSQL" or "PostgreSQL" not in databases
        share = {} if whole else {SHARE: SHARES["SQLite" if title == "SQLite" else "PostgreSQL"]}
        for part in ("0/2", "1/2") if whole else ("",):
            shown = f"{title}, with real workers" + (f", part {part}" if part else "")
            yield Suite(shown, Path(sys.executable), {**databases[title], **share, PART: part}, options)


def run_in_parallel(tasks: Sequence[Suite | TypeCheck], scratch: Path, *, more: int = 1) -> None:
    """Run suites and type checks in parallel, and print their output one after the other.

    ``more``: how many run at the same time in addition to one for each core, because a suite often waits.
    """

    def run_task(number: int) -> tuple[int, Path]:
        task, log = tasks[number], scratch / f"{number}.log"
        variables = dict(os.environ)
        if isinstance(task, TypeCheck):
            command = list(task.command)
        else:
            covering = ("--cov", "--cov-report=") if task.covered else ()
            command = [*pytest_of(task.python), *task.options, *covering]
            # Each suite uses its own numbered database of Redis, which has 16.
            own = {"TEST_REDIS_URL": f"{services.REDIS_URL.rpartition('/')[0]}/{6 + number % 10}"}
            # The tracer that Python 3.12 and newer offer costs next to nothing, but can count no branches before 3.14.
            own |= {"COVERAGE_FILE": str(scratch / f".coverage.{number}")}
            own |= {"COVERAGE_CORE": "sysmon"} if task.covered and task.python != Path(sys.executable) else {}
            variables |= {**task.environment, **own}
        with log.open("wb") as output:
            done = subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=output, check=False)
        return done.returncode, log

    failed = []
    with ThreadPoolExecutor((os.cpu_count() or 2) + more) as pool:
        for task, (code, log) in zip(tasks, pool.map(run_task, range(len(tasks))), strict=True):
            title = f"tests: {task.title}" if isinstance(task, Suite) else task.title
            print(f"\n== {title}\n{log.read_text(errors='replace')}", flush=True)
            empty = isinstance(task, Suite) and task.may_be_empty and code == NOTHING_SELECTED
            failed += [task.title] if code and not empty else []
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
def skip_if_missing(name: str) -> Iterator[None]:
    """Report that the service ``name`` is missing and continue. Exit if ``AUTOMATION_REQUIRE`` names it."""
    try:
        yield
    except (postgres.NoServerError, mariadb.NoServerError, LookupError) as error:
        if name in services.required():
            raise SystemExit(f"FAILED: {name} is missing, and AUTOMATION_REQUIRE names it. {error}") from error
        print(f"\n== skipped: {error}", flush=True)


def install_driver() -> None:
    """Install MariaDB's driver, which pip compiles. Raises ``NoServerError`` if that fails."""
    try:
        environment.install(Path(sys.executable), *environment.requirements(["mariadb"]))
    except subprocess.CalledProcessError as error:
        raise mariadb.NoServerError(
            f"MariaDB's driver mysqlclient could not be installed. {mariadb.HOW_TO_START}"
        ) from error


def newest_python(groups: list[str]) -> Path | None:
    """Create an environment with the newest Python of this machine and the newest Django; return its interpreter.

    Returns None if the gate's own Python is the newest, or if PATH and the version managers have no other.
    """
    for version in NEWEST_PYTHONS:
        if sys.version_info[:2] >= tuple(map(int, version.split("."))):
            return None
        for candidate in candidates(version):
            probe = [candidate, "-c", "import venv, ensurepip, sqlite3"]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return create_environment(version, candidate, *groups)
    version = sys.version.split()[0]
    print(f"\n== skipped: found no Python {', '.join(NEWEST_PYTHONS)}; tested Python {version} only", flush=True)
    return None


def create_environment(name: str, python: str, *groups: str) -> Path:
    """Create the environment ``.venv-NAME`` and return its interpreter."""
    folder = ROOT / f".venv-{name}"
    subprocess.run([python, str(ROOT / "tools" / "environment.py"), str(folder), *groups], check=True)
    return folder / "bin" / "python"


def candidates(version: str) -> Iterator[str]:
    """Yield interpreters of ``version``: from pyenv, uv and asdf, then from PATH."""
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
