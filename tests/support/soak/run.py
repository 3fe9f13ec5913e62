"""The soak: random programs run under fire, and at the end the rows are compared with what the model allows.

    python -m tests.support.soak.run --minutes 2 --seed 7 --database postgresql

The outside (``actions.Chooser``) creates things, moves their dates, changes conditions, starts runs, sends signals one
by one and in bursts, cancels runs and events, and deletes things. It writes to crates in the ways of which Django sends
no signals, and as another program; it moves visits, and the time zones of their halls. Two schedules tick. Some steps
hold claims, and some hang until their timeout. The clocks of the workers are wrong by up to ``--skew`` seconds.
Meanwhile a worker is killed about once a second, workers are suspended (often for longer than their lease) and then
continue, a ``qcluster`` sometimes works beside them and loses processes, something is paused for about two seconds, and
the database is stopped immediately and restarted (not SQLite, which has no server). When the time is up, the workers
drain all remaining work, ``model.compare`` compares, and each unfinished row must have a reason to wait.

The seed determines every choice of the outside. What a worker does when it is killed depends on the machine, so a seed
that has failed may pass the next time. The output (the difference, the deeds, the effects, the history rows) should be
enough to find the cause. Exit code 0: no findings.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.child_processes import ROOT, group_of, is_alive, kill_group, spawn
from tests.support.fork_server import ForkServer
from tests.support.servers import NoBinariesError, Server, private_mariadb, private_postgresql

LEASE = 1.5
BACKLOG = 300
"""Number of due rows above which the outside pauses."""
PATIENCE = 120
"""Seconds without progress after which the soak gives up waiting for the remaining rows."""
REST = 10
"""Seconds for which the rows that remain may seem to wait for a worker."""
PAUSABLE: tuple[dict[str, Any], ...] = (
    {"workflow": "soak:program"},
    {"workflow": "soak:ready"},
    {"agent": "soak:keeper"},
    {"queue": "planned"},
    {"queue": "default"},
    {"everything": True},
)
SKIP = 77
"""Exit code if the binaries of a server are missing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--database", choices=("sqlite", "postgresql", "mariadb"), default="sqlite")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument(
        "--replica", action="store_true", help="read from a lagging replica where the code names no database"
    )
    parser.add_argument("--skew", type=float, default=0.4, help="largest error of the workers' clocks, in seconds")
    wanted = parser.parse_args()
    print(f"soak of {wanted.minutes:g} minutes on {wanted.database}, --seed {wanted.seed}", flush=True)
    try:
        if wanted.replica:
            os.environ["TEST_REPLICA"] = "1"
        with own_database(wanted.database) as server, tempfile.TemporaryDirectory(prefix="soak-") as scratch:
            set_up()
            soak = Soak(wanted.seed, wanted.minutes * 60, wanted.workers, server, Path(scratch), wanted.skew)
            findings = soak.run()
    except NoBinariesError as error:
        print(error)
        sys.exit(SKIP)
    for finding in findings:
        print(finding, flush=True)
    print(f"{len(findings)} findings, --seed {wanted.seed}")
    sys.exit(bool(findings))


@contextlib.contextmanager
def own_database(kind: str, lease: float = LEASE) -> Iterator[Server | None]:
    """Start a separate database, and set the environment so that this process and its children use it."""
    common = {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TEST_DATABASE": kind,
        "TEST_LEASE_SECONDS": str(lease),
        "TEST_RUNTIME": "silent",
        "SOAK_LANES": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }
    with contextlib.ExitStack() as stack:
        os.environ["TEST_SCRATCH"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))
        server: Server | None = None
        if kind == "sqlite":
            os.environ["TEST_LIVE_NAME"] = str(Path(os.environ["TEST_SCRATCH"]) / "soak.sqlite3")
        else:
            started = private_postgresql(durable=True) if kind == "postgresql" else private_mariadb()
            server = stack.enter_context(started)
            common |= {**server.variables(), "TEST_LIVE_NAME": server.settings["NAME"]}
        os.environ.update(common)
        yield server


def set_up() -> None:
    import django

    django.setup()
    logging.disable(logging.CRITICAL)
    from django.conf import settings
    from django.core.management import call_command

    for alias in settings.DATABASES:  # a replica is migrated, but never written to
        call_command("migrate", verbosity=0, run_syncdb=True, database=alias)


class Soak:
    """One soak, from the first deed to the verdict."""

    def __init__(
        self, seed: int, seconds: float, workers: int, server: Server | None, scratch: Path, skew: float
    ) -> None:
        from .actions import Chooser, Outside

        self.seconds = seconds
        self.workers = workers
        self.server = server
        self.scratch = scratch
        self.outside = Outside()
        self.chooser = Chooser(self.outside, seed)
        self.random = random.Random(f"fire {seed}")
        self.skew = timedelta(seconds=skew)
        self.fork_server = ForkServer({**os.environ, "TEST_CLOCK_SKEW": str(skew)}, scratch / "workers.log")
        self.pids: list[int] = []
        self.cluster: subprocess.Popen[bytes] | None = None
        self.restarting: threading.Thread | None = None
        self.count = Counter[str]()
        self.asked_again, self.behind = 0.0, False
        self.paused: dict[str, Any] = {}

    def run(self) -> list[str]:
        """Run the soak, and return its findings: an empty list if nothing is wrong."""
        from django.utils import timezone

        from .observations import world_of

        since = timezone.now()
        try:
            self._under_fire()
            quiet = self._settle()
        finally:
            self._stop_cluster()
            self.fork_server.close()
        print(f"{len(self.outside.deeds)} deeds, {dict(self.count)}", flush=True)
        world = world_of(self.outside, slack=timedelta(seconds=LEASE + 1), skew=self.skew, since=since)
        kinds = Counter(effect.owner.partition(":")[2] or "run" for effect in world.effects)
        print(f"{len(world.effects)} effects: {dict(kinds)}", flush=True)
        ticks = {name: (row.fired, row.skipped) for name, row in world.schedules.items()}
        print(f"times of the schedules, and how many of them were left out: {ticks}", flush=True)
        print(f"runs: {dict(Counter(run.status for run in world.runs))}", flush=True)
        return [*quiet, *self._verdict(world)]

    # -- under fire ----------------------------------------------------------------------------------------------------

    def _under_fire(self) -> None:
        started = time.monotonic()
        end = started + self.seconds
        fire: dict[str, tuple[float, Callable[[], None]]] = {
            "a worker is killed": (1.0, self._kill),
            "a worker is stopped": (5.0, self._stop),
            "a cluster comes or goes": (12.0, self._change_cluster),
            "a process of the cluster is killed": (4.0, self._kill_in_cluster),
            "the database restarts": (13.0, self._restart),
            "something is paused or continues": (2.0, self._pause),
        }
        due = {name: started + self.random.uniform(0.5, 1.5) * every for name, (every, _) in fire.items()}
        while (now := time.monotonic()) < end:
            self._respawn()
            for name, (every, act) in fire.items():
                if now >= due[name]:
                    due[name] = now + self.random.uniform(0.5, 1.5) * every
                    act()
            if not self._is_behind(now):
                self.chooser.step()
            time.sleep(self.random.uniform(0, 0.06))

    def _is_behind(self, now: float) -> bool:
        """Return whether so many rows are due that the outside pauses. Otherwise the workers of a busy machine would
        never catch up, and the soak would test only a long queue."""
        from django.db import DatabaseError, connections

        from .observations import restless

        if now >= self.asked_again:
            self.asked_again = now + 1
            try:
                self.behind = restless(timedelta(0)) > BACKLOG
            except DatabaseError:
                connections.close_all()
                self.behind = False
            self.count["rests"] += self.behind
        return self.behind

    def _respawn(self) -> None:
        self.pids = [pid for pid in self.pids if is_alive(pid)]
        while len(self.pids) < self.workers:
            self.pids.append(self.fork_server.spawn())

    def _kill(self) -> None:
        self._signal(self.random.choice(self.pids), self.random.choice([signal.SIGKILL] * 4 + [signal.SIGTERM]))

    def _stop(self) -> None:
        """Suspend a worker, often for longer than its lease: another worker claims its rows, and then it continues."""
        pid = self.random.choice(self.pids)
        self._signal(pid, signal.SIGSTOP)
        # In a separate thread: on SQLite the worker may hold the write lock that the outside waits for.
        threading.Timer(self.random.uniform(0.5, 2.5) * LEASE, self._signal, [pid, signal.SIGCONT]).start()

    def _signal(self, pid: int, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
            self.count[what.name] += 1

    def _restart(self) -> None:
        """Restart the database. The outside continues: it cannot connect, or loses the answer to a commit."""
        if self.server is not None and (self.restarting is None or not self.restarting.is_alive()):
            self.restarting = threading.Thread(target=self.server.restart)
            self.restarting.start()
            self.count["restarts of the database"] += 1

    def _pause(self) -> None:
        """Pause something for about two seconds."""
        if self.paused:
            self.outside.unpause(**self.paused)
            self.paused = {}
            return
        self.paused = self.random.choice(PAUSABLE)
        self.outside.pause(**self.paused)
        self.count["pauses"] += 1

    def _change_cluster(self) -> None:
        if self.cluster is not None:
            self._stop_cluster()
            return
        self.cluster = spawn(self.scratch / "cluster.log", "manage.py", "qcluster")
        self.count["clusters"] += 1

    def _kill_in_cluster(self) -> None:
        if self.cluster is not None:
            children = group_of(self.cluster.pid)
            if children:
                self._signal(self.random.choice(children), signal.SIGKILL)
                self.count["killed in a cluster"] += 1

    def _stop_cluster(self) -> None:
        if self.cluster is not None:
            kill_group(self.cluster)
            self.cluster = None

    # -- the end -------------------------------------------------------------------------------------------------------

    def _settle(self) -> list[str]:
        """Stop the faults, and work until nothing is due, for as long as the number of remaining rows decreases. Rows
        that were parked because their workers died are resumed, as an operator would do."""
        from django.utils import timezone

        from .observations import restless, resume_lost, without_reason

        self._stop_cluster()
        if self.restarting is not None:
            self.restarting.join()
        if self.paused:
            self.outside.unpause(**self.paused)
        self.chooser.finish()
        for pid in self.pids:
            self._signal(pid, signal.SIGKILL)
        least, deadline = float("inf"), time.monotonic() + PATIENCE
        rested = None
        while True:
            self._respawn()
            self.count["resumed"] += resume_lost()
            left = restless(timedelta(hours=1))
            if not left:
                # What a schedule has fired just now is due for a moment.
                found, rested = without_reason(timezone.now()), rested or time.monotonic()
                if not found or time.monotonic() > rested + REST:
                    return found
            if left < least:
                least, deadline = left, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                stuck = f"it does not come to rest: for two minutes {left} rows have been due or leased"
                return [f"{stuck}\n{self._logs()}", *without_reason(timezone.now())]
            time.sleep(0.2)

    def _verdict(self, world: object) -> list[str]:
        from .model import compare
        from .observations import history_of
        from .world import World

        assert isinstance(world, World)
        found = []
        for said in compare(world):
            tag = re.sub("^(thing|news|crate|visit) ", "", said.split(": ")[0])
            root = _root_of(tag)
            kinds = {"hall"} if said.startswith("visit ") else set()
            deeds = [deed for deed in self.outside.deeds if _root_of(deed.target) == root or deed.kind in kinds]
            lines = [said, *(f"  {deed}" for deed in deeds)]
            lines += [
                f"  {effect.owner} {effect.key} {effect.serial or ''} at {effect.at:%H:%M:%S.%f}"
                for effect in world.effects
                if _root_of(effect.owner) == root
            ]
            found.append("\n".join([*lines, history_of(tag)]))
        return found

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.scratch.glob("*.log")))


def _root_of(tag: str) -> str:
    return tag.partition(":")[0].partition(".")[0]


if __name__ == "__main__":
    main()
