"""Takes turns with the contestants, and writes, prints and draws what was measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.environment import ROOT
from tools.postgres import NoServerError

from bench.peers.contestants import ALL, CONTESTANTS, Contestant
from bench.peers.environments import NoEnvironmentError, interpreter
from bench.peers.logbook import VARIABLE
from bench.peers.measure import MISSING
from bench.peers.results import Results, growth, report
from bench.peers.servers import PostgreSQL, postgresql_server, redis_server

PROCESSES = 2
FOREIGN = ("PG", "DATABASE_URL", "DJANGO_", "BENCH_")
"""The beginnings of variables that contestants do not inherit."""
MATPLOTLIB = ("matplotlib>=3.9",)


def main(description: str) -> None:
    options = parsed(description)
    if options.report:
        results = Results.load(options.json)
    else:
        results = Results.load(options.json) if options.add and options.json.exists() else Results(options.json)
        for each in (signal.SIGINT, signal.SIGTERM):  # also where a shell lets background jobs ignore Ctrl-C
            signal.signal(each, signal.default_int_handler)
        try:
            run(options, results)
        except KeyboardInterrupt:
            print(f"Interrupted; what was measured so far is in {options.json}.", file=sys.stderr)
    print(report(results))
    if options.images:
        draw(options.json, options.images)


def parsed(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("rounds", 3, "how many rounds"),
        ("calls", 2000, "calls of one step in each measurement of throughput"),
        ("flows", 400, "calls of five steps"),
        ("probes", 100, "calls in each measurement of latency"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--finished", default="0,100000,1000000", help="finished calls among which growth is measured")
    parser.add_argument("--only", default="", help="contestants: " + ", ".join(each.name for each in CONTESTANTS))
    parser.add_argument("--measure", default="", help="measurements: " + ", ".join(ALL))
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "peers.json")
    parser.add_argument("--images", type=Path, help="folder for the plots, as SVG and PNG")
    parser.add_argument("--report", action="store_true", help="measure nothing: print and draw an earlier run")
    parser.add_argument("--add", action="store_true", help="add further rounds to those that the JSON holds")
    options = parser.parse_args()
    options.only = _chosen(parser, options.only, [each.name for each in CONTESTANTS])
    options.measure = _chosen(parser, options.measure, list(ALL))
    options.finished = [int(each) for each in options.finished.split(",") if each]
    return options


def _chosen(parser: argparse.ArgumentParser, given: str, known: list[str]) -> list[str]:
    names = [each for each in given.split(",") if each]
    if unknown := [each for each in names if each not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names or known


@dataclass
class Table:
    """What all contestants share: the servers, and a folder for their logbooks."""

    folder: Path
    postgresql: PostgreSQL | None = None
    redis: str = ""
    absent: dict[str, str] = field(default_factory=dict)
    """The reason for each server that is not there."""


@dataclass
class Ready:
    """A contestant that is installed and has its tables."""

    contestant: Contestant
    python: Path
    table: Table

    @property
    def database(self) -> str:
        return database_of(self.contestant)

    def call(self, measurement: str, *, number: int = 1, finished: int = 0, seconds: float = 600) -> dict[str, Any]:
        """Run one measurement in the contestant's environment.

        Raises:
            LookupError: If something that the contestant needs is missing.
            RuntimeError: If the measurement fails, with the end of what it printed.
        """
        out = self.table.folder / "figures.json"
        out.unlink(missing_ok=True)
        arguments = {"variant": self.contestant.variant, "number": number, "finished": finished, "processes": PROCESSES}
        command = [str(self.python), "-m", "bench.peers.measure", self.contestant.driver, measurement, f"--out={out}"]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        code, printed = in_a_group_of_its_own(command, self._environment(), seconds)
        found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        if code == MISSING and "missing" in found:
            raise LookupError(found["missing"])
        if code or not found:
            lines = [line for line in printed.strip().splitlines() if line.strip()] or ["nothing printed"]
            raise RuntimeError(f"exit code {code}: {lines[-1].strip()}")
        return found

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        kept |= {VARIABLE: str(self.table.folder / f"{self.contestant.name}.log"), "PEERS_REDIS_URL": self.table.redis}
        kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")] if self.contestant.ours else [str(ROOT)])
        if self.table.postgresql:
            kept |= self.table.postgresql.environment(self.database)
        return kept


def database_of(contestant: Contestant) -> str:
    return f"peers_{contestant.name.replace('-', '_')}"


def in_a_group_of_its_own(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed on stderr. No process of its group outlives it."""
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        text = printed.read()
    return code, f"no answer within {seconds:g} s" if code == -1 else text


def run(options: argparse.Namespace, results: Results) -> None:
    """Measure everything, in rounds. What fails is noted, and the others are measured."""
    results.about(
        begun=datetime.now(UTC).isoformat(timespec="seconds"),
        machine={"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        processes=PROCESSES,
        options={name: getattr(options, name) for name in ("rounds", "calls", "flows", "probes", "finished")},
    )
    with servers() as table:
        if table.postgresql:
            results.about(postgresql=table.postgresql.describe())
        wanted = [each for each in CONTESTANTS if each.name in options.only]
        ready = [found for each in wanted if (found := prepare(each, table, results))]
        try:
            before = results.last_round()
            for number in range(before + 1, before + options.rounds + 1):
                for measurement, count, finished in plan(options):
                    # Each round begins with another contestant: none is always the one after a pause.
                    for each in ready[number % len(ready) :] + ready[: number % len(ready)] if ready else []:
                        if measurement in each.contestant.measurements:
                            take(each, results, measurement, number, count, finished)
        finally:
            for each in ready:
                if table.postgresql:
                    table.postgresql.drop(each.database)


@contextlib.contextmanager
def servers() -> Iterator[Table]:
    """Yield the servers that there are, with the reasons for those that there are not."""
    with contextlib.ExitStack() as stack:
        table = Table(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-"))))
        try:
            table.postgresql = stack.enter_context(postgresql_server())
        except (NoServerError, ImportError) as error:
            table.absent["postgresql"] = str(error)
        try:
            table.redis = stack.enter_context(redis_server())
        except NoServerError as error:
            table.absent["redis"] = str(error)
        yield table


def prepare(contestant: Contestant, table: Table, results: Results) -> Ready | None:
    """Install a contestant and create its tables; None, with the reason in the results, if that is not possible."""
    for need in sorted(contestant.needs & table.absent.keys()):
        return missing(contestant, results, table.absent[need])
    try:
        ready = Ready(contestant, interpreter(contestant.name, contestant.requirements), table)
        if table.postgresql and "postgresql" in contestant.needs:
            table.postgresql.create(ready.database)
        results.describe(contestant.name, ready.call("describe", seconds=120))
    except (NoEnvironmentError, LookupError, RuntimeError, OSError) as error:
        if table.postgresql:
            table.postgresql.drop(database_of(contestant))
        return missing(contestant, results, str(error))
    return ready


def missing(contestant: Contestant, results: Results, reason: str) -> None:
    print(f"without {contestant.label}: {reason}", file=sys.stderr, flush=True)
    results.missing(contestant.name, reason)


def plan(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Return measurement, number of calls, and number of finished calls, in the order of a round."""
    counts = {"five": options.flows, "latency": options.probes}
    found = []
    for each in options.measure:
        for finished in options.finished if each == "growth" else [0]:
            found.append((each, counts.get(each, options.calls), finished))
    return found


def take(ready: Ready, results: Results, measurement: str, number: int, count: int, finished: int) -> None:
    """Let one contestant have its turn; note its figures or its failure."""
    name = growth(finished) if measurement == "growth" else measurement
    try:
        if ready.table.postgresql:
            ready.table.postgresql.checkpoint()
        figures = ready.call(measurement, number=count, finished=finished)
    except (LookupError, RuntimeError, OSError) as error:
        results.failed(ready.contestant.name, name, number, str(error))
        said = f"FAILED: {error}"
    else:
        results.add(ready.contestant.name, name, number, {**figures, "load": round(os.getloadavg()[0], 1)})
        said = ", ".join(f"{key} {value:,.1f}" for key, value in figures.items() if isinstance(value, float))
    print(f"round {number}, {name}, {ready.contestant.label}: {said}", file=sys.stderr, flush=True)


def draw(file: Path, folder: Path) -> None:
    """Draw the plots in an environment that has matplotlib; say so if there is none."""
    try:
        python = interpreter("plots", MATPLOTLIB)
    except NoEnvironmentError as error:
        print(f"no plots: {error}", file=sys.stderr)
        return
    command = [str(python), "-m", "bench.peers.plots", str(file.resolve()), str(folder.resolve())]
    done = subprocess.run(command, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        print("no plots: see the error above", file=sys.stderr)
