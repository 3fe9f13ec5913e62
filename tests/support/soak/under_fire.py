"""Throughput under fire: so many runs, and a worker killed every second until all of them have ended.

``Fire`` starts the runs in the database that Django is set up for, and the workers in processes of their own: plain
ones (forked, so that a dead one is replaced at once), or a ``qcluster`` of which any process may be killed, the idle
ones too. A cluster that has wedged by it is started anew when the health check says so, as a container's liveness probe
does.
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
"""How long nobody may make progress before the probe says that the cluster has wedged. Workers say each five seconds
what they have done."""
STARTS_WITHIN = timedelta(seconds=30)


@dataclass
class Fire:
    """One fight. ``runs``: how many runs of how many steps. ``every``: seconds from kill to kill."""

    runs: dict[int, int]
    environment: dict[str, str]
    scratch: Path
    every: float = 1.0
    workers: int = 3
    seed: int = 1
    patience: float = 600
    count: Counter[str] = field(default_factory=Counter)

    def fight(self, kind: str) -> float:
        """Start everything, kill until all have ended, and return how many seconds it took. ``kind``: ``workers`` or
        ``qcluster``. Raises ``AssertionError`` where it takes longer than ``patience``."""
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
            # Signs of life come each five seconds, and all may be done by then.
            latest = StepExecution.objects.order_by("pk").last()
            works = reports or (latest is not None and latest.finished > started)
            # A probe gives a container its time to start; nor is one killed that has not begun to work.
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
        """Say what is not as it must be: each run completed, each of its effects there exactly once."""
        wanted = {f"{steps}:{each}": steps for steps, number in self.runs.items() for each in range(number)}
        ended = dict(WorkflowRun.objects.filter(name="soak:steps").values_list("data__tag", "status"))
        found = [f"{tag} is {ended.get(tag)}" for tag in wanted if ended.get(tag) != "completed"]
        effects = Effect.objects.filter(owner__contains=":").values_list("owner", "key").annotate(number=Count("pk"))
        left = {(owner, key): number for owner, key, number in effects}
        expected = {(tag, str(key)) for tag, steps in wanted.items() for key in range(1, steps + 1)}
        found += [f"{owner} did step {key} {number} times" for (owner, key), number in left.items() if number != 1]
        found += [f"{owner} never did step {key}" for owner, key in expected - set(left)]
        found += [f"nobody asked for step {key} of {owner}" for owner, key in set(left) - expected]
        return found
