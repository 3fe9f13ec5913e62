"""One measurement of one contestant, in its environment: ``python -m bench.peers.measure --help``.

Needs nothing but the standard library and what the contestant's driver imports.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.peers.logbook import VARIABLE, Logbook, drain_rate
from bench.peers.peer import MissingError, Peer

MISSING = 3
"""The exit code when something that the contestant needs is not there."""

WARM_UP_SECONDS = 60
FINISH_SECONDS = 240

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver")
    parser.add_argument("measurement", choices=("describe", *MEASUREMENTS))
    parser.add_argument("--variant", default="")
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--finished", type=int, default=0, help="number of finished calls that the tables hold")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logbook = Logbook(Path(os.environ[VARIABLE]))
    try:
        driver = importlib.import_module(f"bench.peers.drivers.{options.driver}")
        peer: Peer = driver.Driver(options.variant, options.processes)
        if options.measurement == "describe":
            peer.prepare()
            figures = peer.describe()
        else:
            figures = peer.measure(options.measurement, options.number) or MEASUREMENTS[options.measurement](
                Bench(peer, logbook), options
            )
    except MissingError as error:
        options.out.write_text(json.dumps({"missing": str(error)}))
        sys.exit(MISSING)
    options.out.write_text(json.dumps(figures))


class Bench:
    """A contestant with its logbook and its workers."""

    def __init__(self, peer: Peer, logbook: Logbook) -> None:
        self.peer = peer
        self.logbook = logbook

    def clear(self) -> None:
        self.peer.clear()
        self.logbook.clear()

    @contextlib.contextmanager
    def workers(self) -> Iterator[None]:
        """Run the worker processes. Their leftovers end with the process group of this process."""
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in self.peer.workers()]
        try:
            yield
        finally:
            for each in running:
                each.terminate()
            for each in running:
                try:
                    each.wait(10)
                except subprocess.TimeoutExpired:
                    each.kill()
                    each.wait()

    def warm_up(self) -> None:
        """Start calls until each worker process has performed one, and the last has finished."""
        deadline = time.monotonic() + WARM_UP_SECONDS
        started = 0
        while len({each.process for each in self.logbook.notes()}) < self.peer.processes:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {self.peer.processes} worker processes took part in {WARM_UP_SECONDS} s")
            for _ in range(20):
                self.peer.start(started)
                started += 1
            time.sleep(0.5)
        self.wait(started)
        time.sleep(1)
        self.logbook.clear()

    def wait(self, notes: int) -> int:
        """Wait for the notes, and until the contestant has recorded all calls as finished; return that moment."""
        until(lambda: self.logbook.count() >= notes, f"{notes} notes", 0.005)
        until(lambda: self.peer.unfinished() == 0, "the end of all calls", 0.01)
        return time.monotonic_ns()


def until(condition: Callable[[], bool], what: str, pause: float, seconds: float = FINISH_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:g} s for {what}")
        time.sleep(pause)


def starts(bench: Bench, options: argparse.Namespace) -> Figures:
    """Calls started per second, one after another, each recorded before the next. No worker runs."""
    bench.clear()
    for number in range(20):
        bench.peer.start(number)
    begun = time.monotonic()
    for number in range(options.number):
        bench.peer.start(number)
    return {"per second": options.number / (time.monotonic() - begun)}


def drain(bench: Bench, options: argparse.Namespace) -> Figures:
    """Calls of one step per second that workers perform which find them waiting."""
    bench.clear()
    bench.peer.backlog(range(options.number))
    return _drained(bench, options.number)


def five(bench: Bench, options: argparse.Namespace) -> Figures:
    """The steps per second of calls with five durable steps each, which workers find waiting."""
    bench.clear()
    bench.peer.backlog(range(0, 5 * options.number, 5), five=True)
    return _drained(bench, 5 * options.number)


def growth(bench: Bench, options: argparse.Namespace) -> Figures:
    """As ``drain``, among many finished calls."""
    bench.clear()
    if options.finished:
        bench.peer.fill(options.finished)
    bench.peer.backlog(range(options.number))
    try:
        return _drained(bench, options.number)
    finally:
        bench.clear()


def _drained(bench: Bench, notes: int) -> Figures:
    with bench.workers():
        finished = bench.wait(notes)
        return {"per second": drain_rate(bench.logbook.notes(), finished, bench.peer.processes)}


def end_to_end(bench: Bench, options: argparse.Namespace) -> Figures:
    """Calls per second from the first start to the last end, with workers beside the caller."""
    bench.clear()
    with bench.workers():
        bench.warm_up()
        begun = time.monotonic_ns()
        for number in range(options.number):
            bench.peer.start(number)
        return {"per second": options.number / ((bench.wait(options.number) - begun) / 1e9)}


def latency(bench: Bench, options: argparse.Namespace) -> Figures:
    """Milliseconds from before the call to the beginning of its body in an idle worker, at irregular times."""
    bench.clear()
    delays = []
    with bench.workers():
        bench.warm_up()
        for number in range(options.number):
            time.sleep(0.05 + number % 17 / 100)
            begun = time.monotonic_ns()
            bench.peer.start(number)
            until(lambda number=number: bench.logbook.count() > number, "a call", 0.002, 30)  # type: ignore[misc]
            delays.append((bench.logbook.notes()[-1].moment - begun) / 1e6)
    return {
        "p50 ms": statistics.median(delays),
        "p99 ms": sorted(delays)[min(len(delays) - 1, int(len(delays) * 0.99))],
        "samples ms": [round(each, 2) for each in delays],
    }


MEASUREMENTS: dict[str, Callable[[Bench, argparse.Namespace], Figures]] = {
    "starts": starts,
    "drain": drain,
    "end_to_end": end_to_end,
    "five": five,
    "latency": latency,
    "growth": growth,
}

if __name__ == "__main__":
    main()
