"""Dozens of workers: one process sets up Django, and forks a worker on request.

A worker is an ordinary process: it has its own connections and its own heartbeat, and shares nothing. Forking takes
milliseconds, while starting Python and Django takes a second, so there are always enough workers to kill.

    python -m tests.support.fork_server     reads a line for each requested worker, and prints its process id
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from tests.support.child_processes import ROOT


class ForkServer:
    """Controls the process that forks. It does not notice that a worker has died: use ``is_alive``."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server"],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def spawn(self) -> int:
        """Start a worker and return its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """Kill the process and all its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def work() -> None:
    """Drain until killed. After a database failure, pause and try again, as a worker must."""
    from django.db import Error, connections

    from django_ai.automation.queues.drain import drain

    while True:
        try:
            drain(budget=timedelta(seconds=1), heartbeat=True)
        except Error as error:
            print(f"{os.getpid()}: {error}", file=sys.stderr, flush=True)
            connections.close_all()
            time.sleep(0.2)
        time.sleep(0.02)


def skew() -> None:
    """Skew the clock of this worker by up to ``TEST_CLOCK_SKEW`` seconds in either direction."""
    from tests.apps.soak.models import skew_clock

    limit = float(os.environ.get("TEST_CLOCK_SKEW", "0"))
    skew_clock(timedelta(seconds=random.SystemRandom().uniform(-limit, limit)))


def main() -> None:
    import django

    django.setup()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # killed workers do not become zombies
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                skew()
                work()
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
