"""What ``run.py`` measures of runs that a call starts: how soon workers begin them, at which rate, in how much memory.

The body of each run notes its moment in a logbook of the monotonic clock, which all processes of a machine share. So
no query of the benchmark disturbs the workers.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.peers.logbook import VARIABLE, Logbook
from bench.run import clear, cluster, processor_seconds, until, with_descendants

Figures = dict[str, float]
STEADY_RATE = 100
"""Starts a second of the steady load."""
FLOW_STEPS = 5


@contextlib.contextmanager
def logbook() -> Iterator[Logbook]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ[VARIABLE] = str(Path(folder) / "notes")
        yield Logbook(Path(os.environ[VARIABLE]))


@contextlib.contextmanager
def warm_cluster(notes: Logbook) -> Iterator[int]:
    """Run two workers, wait until both have performed a run, and yield the process that supervises them."""
    with cluster() as supervisor:
        started, deadline = 0, time.monotonic() + 60
        while len({each.process for each in notes.notes()}) < 2:
            if time.monotonic() > deadline:
                raise SystemExit("FAILED: no two workers took part within 60 s; see their output above.")
            for _ in range(20):
                start(started)
                started += 1
            time.sleep(0.5)
        until(lambda: notes.count() == started, 60)
        time.sleep(1)
        notes.clear()
        yield supervisor


def start(number: int) -> None:
    from django_ai.automation import engine

    engine.start("noted", number=number)


def rates(options: Namespace) -> Figures:
    """Starts a second without workers, and from the first start to the last body with workers beside the caller."""
    for number in range(20):
        start(number)
    begun = time.monotonic()
    for number in range(options.runs):
        start(number)
    figures = {"starts per second": options.runs / (time.monotonic() - begun)}
    clear()
    with logbook() as notes, warm_cluster(notes) as supervisor:
        used = {pid: processor_seconds(pid) for pid in with_descendants(supervisor)}
        begun, computed = time.monotonic(), time.process_time()
        for number in range(options.runs):
            start(number)
        computed = time.process_time() - computed
        until(lambda: notes.count() == options.runs, 120, 0.005)
        figures["runs per second, start to end"] = options.runs / (time.monotonic() - begun)
        figures["processor time of the caller, ms per start"] = computed / options.runs * 1000
        worked = sum(processor_seconds(pid) - before for pid, before in used.items())
        figures["processor time of all workers, ms per run"] = worked / options.runs * 1000
    return figures


def latency(options: Namespace) -> Figures:
    """From the call of ``engine.start`` to the body, and from its return, on idle workers at irregular times."""
    with logbook() as notes, warm_cluster(notes):
        calls = []
        for number in range(options.probes):
            time.sleep(0.05 + number % 17 / 100)
            calls.append(_timed_start(number))
            until(lambda number=number: notes.count() > number, 30, 0.002)  # type: ignore[misc]
        return _delays("idle", calls, notes)


def steady(options: Namespace) -> Figures:
    """The same at a steady rate of starts."""
    with logbook() as notes, warm_cluster(notes):
        calls, begun = [], time.monotonic()
        for number in range(options.seconds * STEADY_RATE):
            time.sleep(max(0.0, begun + number / STEADY_RATE - time.monotonic()))
            calls.append(_timed_start(number))
        until(lambda: notes.count() == len(calls), 60)
        return _delays(f"{STEADY_RATE} a second", calls, notes)


def _timed_start(number: int) -> tuple[int, int]:
    called = time.monotonic_ns()
    start(number)
    return called, time.monotonic_ns()


def _delays(load: str, calls: Sequence[tuple[int, int]], notes: Logbook) -> Figures:
    bodies = {each.number: each.moment for each in notes.notes()}
    figures = {}
    for what, moments in (("call", [call for call, _ in calls]), ("return", [back for _, back in calls])):
        delays = sorted((bodies[number] - moment) / 1e6 for number, moment in enumerate(moments))
        figures[f"{what} to body, {load}, p50, ms"] = statistics.median(delays)
        figures[f"{what} to body, {load}, p99, ms"] = delays[min(len(delays) - 1, int(len(delays) * 0.99))]
    return figures


def memory(options: Namespace) -> Figures:
    """How much the resident memory of a worker process grows from a fifth of ``--steps`` steps to all of them."""
    from django.db import transaction

    from django_ai.automation import engine
    from django_ai.automation.workflows.models import StepExecution

    with transaction.atomic():
        for number in range(options.steps // FLOW_STEPS):
            engine.start("five", number=number)
    with cluster() as supervisor:
        until(lambda: StepExecution.objects.count() >= options.steps / 5, 600, 0.5)
        before = {pid: resident_megabytes(pid) for pid in with_descendants(supervisor)}
        until(lambda: StepExecution.objects.count() >= options.steps // FLOW_STEPS * FLOW_STEPS, 1200, 0.5)
        after = {pid: resident_megabytes(pid) for pid in before}
    return {
        "memory of the largest process, MB": max(after.values()),
        "its growth over the last four fifths of the steps, MB": max(after[pid] - before[pid] for pid in before),
    }


def resident_megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def plan_timers(number: int) -> None:
    """Insert ``number`` runs that sleep for hours yet."""
    from bench.growth import insert

    insert(number, "suspended", "now()", "NULL", "now() + interval '1 hour' + n * interval '1 second'")
