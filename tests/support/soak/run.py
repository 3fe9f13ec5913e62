"""The soak: random programs under fire, and at the end what is there is compared with what the model says.

    python -m tests.support.soak.run --minutes 2 --seed 7 --database postgresql

The outside (``outside.Chooser``) makes things and moves their dates, flips conditions, starts runs, sends signals, one
by one and in bursts, claims, cancels runs and events, and deletes; some steps hang until their timeout. The clocks
of the workers are wrong by up to ``--skew`` seconds. Meanwhile workers are killed about once a second, some are stopped
for longer than their lease and then go on, for a while a ``qcluster`` works beside them and loses processes, and the
database is stopped at once and started again (not SQLite, which has no server). After the time is up the workers drain
all that is left, ``model.compare`` compares, and every unfinished row must say what it waits for.

The seed drives every choice of the outside. When a kill meets a worker is up to the machine, so a seed that has failed
may pass; what is printed (the difference, the deeds, the effects, the history rows) is meant to be enough. Exit code 0:
all is well.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
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

from tests.support.child_processes import ROOT, group_of, is_alive, kill_group, spawn
from tests.support.fork_server import ForkServer
from tests.support.servers import NoBinariesError, Server, private_mariadb, private_postgresql

LEASE = 1.5
BACKLOG = 300
"""Rows that may be due before the outside rests."""
PATIENCE = 120
"""Seconds without progress after which it does not come to rest any more."""
SKIP = 77
"""Exit code where the binaries of a server are missing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--database", choices=("sqlite", "postgresql", "mariadb"), default="sqlite")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--replica", action="store_true", help="what is read without saying where is a lagging replica")
    parser.add_argument("--skew", type=float, default=0.4, help="by how many seconds clocks of workers may be wrong")
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
    """Start a database of our own, and let the environment lead this process and its children to it."""
    common = {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TEST_DATABASE": kind,
        "TEST_LEASE_SECONDS": str(lease),
        "TEST_RUNTIME": "silent",
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

    for alias in settings.DATABASES:  # a replica is migrated, and never written
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

    def run(self) -> list[str]:
        """Return what is wrong: nothing, if all is well."""
        from .observations import world_of

        try:
            self._under_fire()
            quiet = self._settle()
        finally:
            self._stop_cluster()
            self.fork_server.close()
        print(f"{len(self.outside.deeds)} deeds, {dict(self.count)}", flush=True)
        world = world_of(self.outside, slack=timedelta(seconds=LEASE + 1), skew=self.skew)
        print(f"{len(world.effects)} effects, runs: {dict(Counter(run.status for run in world.runs))}", flush=True)
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
        """Return whether so much is due that the outside rests: on a busy machine the workers would never come to the
        end of it, and it would be a long queue that is tried and nothing else."""
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
        """Stop a worker for longer than its lease: somebody else takes what it has, and then it goes on."""
        pid = self.random.choice(self.pids)
        self._signal(pid, signal.SIGSTOP)
        # By a thread of its own: on SQLite the worker may have the write lock that the outside waits for.
        threading.Timer(self.random.uniform(0.5, 2.5) * LEASE, self._signal, [pid, signal.SIGCONT]).start()

    def _signal(self, pid: int, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
            self.count[what.name] += 1

    def _restart(self) -> None:
        """Meanwhile the outside goes on, and meets a database that is not there, or loses the answer to a commit."""
        if self.server is not None and (self.restarting is None or not self.restarting.is_alive()):
            self.restarting = threading.Thread(target=self.server.restart)
            self.restarting.start()
            self.count["restarts of the database"] += 1

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
        """Let the fire go out, and work until nothing is due, however long that takes as long as it becomes less. What
        was parked because its workers died is resumed, as an operator would."""
        from django.utils import timezone

        from .observations import restless, resume_lost, without_reason

        self._stop_cluster()
        if self.restarting is not None:
            self.restarting.join()
        self.chooser.finish()
        for pid in self.pids:
            self._signal(pid, signal.SIGKILL)
        least, deadline = float("inf"), time.monotonic() + PATIENCE
        while True:
            self._respawn()
            self.count["resumed"] += resume_lost()
            left = restless(timedelta(hours=1))
            if not left:
                return without_reason(timezone.now())
            if left < least:
                least, deadline = left, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                stuck = f"it does not come to rest: for two minutes {left} rows have been due or leased"
                return [f"{stuck}\n{self._logs()}", *without_reason(timezone.now())]
            time.sleep(0.2)

    def _verdict(self, world: object) -> list[str]:
        from .model import World, compare
        from .observations import history_of

        assert isinstance(world, World)
        found = []
        for said in compare(world):
            tag = said.split(": ")[0].removeprefix("thing ")
            root = _root_of(tag)
            lines = [said, *(f"  {deed}" for deed in self.outside.deeds if _root_of(deed.target) == root)]
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
