"""Throughput under fire: runs are started, and a worker is killed every second until all runs have ended.

``Fire`` starts the runs in the configured database, and the workers in separate processes: plain workers (forked, so
that a killed one is replaced at once), or a ``qcluster`` of which any process may be killed, idle ones included. A
cluster that hangs because of a kill is restarted when the health check reports it, as a liveness probe would do.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from django.db import transaction
from django.db.models import Count
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.operations.health import check_health
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.soak.models import Effect
from tests.support.child_processes import group_of, is_alive, kill_group, spawn
from tests.support.fork_server import ForkServer

from .observations import resume_lost

TOLERANCE = timedelta(seconds=15)
"""How long the cluster may make no progress before the probe reports that it hangs. Workers report what they have done
every five seconds."""
STARTS_WITHIN = timedelta(seconds=30)


@dataclass
class Fire:
    """One measurement. ``runs``: the number of runs, by number of steps. ``every``: seconds between kills."""

    runs: dict[int, int]
    environment: dict[str, str]
    scratch: Path
    every: float = 1.0
    workers: int = 3
    seed: int = 1
    patience: float = 600
    count: Counter[str] = field(default_factory=Counter)

    def fight(self, kind: str) -> float:
        """Start everything, kill until all runs have ended, and return the duration in seconds. ``kind``: ``workers``
        or ``qcluster``. Raises ``AssertionError`` if it takes longer than ``patience``."""
        self.start()
        began = time.monotonic()
        draw, next_kill, next_look = random.Random(self.seed), began + self.every, began + 5
        with self._workers() if kind == "workers" else self._cluster() as keep_alive:
            while self._unfinished():
                victims = keep_alive()
                now = time.monotonic()
                if now >= next_kill and victims:
                    next_kill = now + self.every
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(draw.choice(victims), signal.SIGKILL)
                        self.count["killed"] += 1
                if now >= next_look:
                    next_look = now + 5
                    self.count["resumed"] += resume_lost()
                if now - began > self.patience:
                    rows = [str(each) for each in explain(timezone.now())][:20]
                    raise AssertionError("\n".join([f"Not done after {self.patience} s: {self.count}", *rows]))
                time.sleep(0.2)
        return time.monotonic() - began

    def start(self) -> None:
        with transaction.atomic():
            for steps, number in self.runs.items():
                for each in range(number):
                    engine.start("soak:steps", tag=f"{steps}:{each}", steps=steps)

    def _unfinished(self) -> bool:
        return WorkflowRun.objects.filter(name="soak:steps").unfinished().exists()

    @contextlib.contextmanager
    def _workers(self) -> Iterator[Callable[[], list[int]]]:
        fork_server = ForkServer(self.environment, self.scratch / "workers.log")
        pids: list[int] = []

        def keep_alive() -> list[int]:
            pids[:] = [pid for pid in pids if is_alive(pid)]
            while len(pids) < self.workers:
                pids.append(fork_server.spawn())
            return pids

        try:
            yield keep_alive
        finally:
            fork_server.close()

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[Callable[[], list[int]]]:
        cluster, started = self._start_cluster(), timezone.now()

        def keep_alive() -> list[int]:
            nonlocal cluster, started
            now = timezone.now()
            health = check_health(now, TOLERANCE)
            reports = health.last_worked_at is not None and health.last_worked_at > started
            # Workers report every five seconds, and all runs may have ended by then.
            latest = StepExecution.objects.order_by("pk").last()
            works = reports or (latest is not None and latest.finished > started)
            # A probe gives a container time to start. No process of a cluster that has not begun to work is killed.
            is_ill = (reports or now - started > STARTS_WITHIN) and not health.is_healthy
            if is_ill or cluster.poll() is not None:
                self.count["clusters started anew"] += 1
                kill_group(cluster)
                cluster, started = self._start_cluster(), timezone.now()
                return []
            return group_of(cluster.pid) if works else []

        try:
            yield keep_alive
        finally:
            kill_group(cluster)

    def _start_cluster(self) -> subprocess.Popen[bytes]:
        return spawn(
            self.scratch / "cluster.log", "manage.py", "qcluster", **{**self.environment, "TEST_RUNTIME": "q2"}
        )

    def verdict(self) -> list[str]:
        """Return the violations: each run must be completed, and each of its effects must exist exactly once."""
        wanted = {f"{steps}:{each}": steps for steps, number in self.runs.items() for each in range(number)}
        ended = dict(WorkflowRun.objects.filter(name="soak:steps").values_list("data__tag", "status"))
        found = [f"{tag} is {ended.get(tag)}" for tag in wanted if ended.get(tag) != "completed"]
        effects = Effect.objects.filter(owner__contains=":").values_list("owner", "key").annotate(number=Count("pk"))
        left = {(owner, key): number for owner, key, number in effects}
        expected = {(tag, str(key)) for tag, steps in wanted.items() for key in range(1, steps + 1)}
        found += [f"{owner} did step {key} {number} times" for (owner, key), number in left.items() if number != 1]
        found += [f"{owner} never did step {key}" for owner, key in expected - set(left)]
        found += [f"step {key} of {owner} was not requested" for owner, key in set(left) - expected]
        return found
