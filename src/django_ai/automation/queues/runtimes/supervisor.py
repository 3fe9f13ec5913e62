"""``Supervisor``: starts, restarts and stops the processes of ``automation_worker``. It opens no database connection.

Each child is a new process, not a fork, and shares only the database with the others. A child that ends is started
again, with a growing delay if it ends soon after its start. A child that does not end within its grace is killed. Each
child holds the read end of a pipe whose write end only the supervisor has: if the supervisor is killed, the children
notice it and shut down.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType

from ..liveness import existing_paths, path_of
from .reloading import CODE_CHANGED

logger = logging.getLogger("django_ai.automation")

CHILD_BOOTSTRAP = """\
import os, sys
sys.path[:] = sys.argv.pop(1).split(os.pathsep)
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
"""The code that a child runs. It gets the supervisor's ``sys.path`` as an argument, not in the environment, which the
processes that it starts would inherit."""
CHECK_INTERVAL_SECONDS = 0.1
STABLE_AFTER_SECONDS = 10.0
"""A child that ran for at least this long is restarted at once."""
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
KILL_DELAY_SECONDS = 5.0
"""How long after the end of its grace a child is killed."""


@dataclass
class Child:
    """One of the processes to keep running: the process that runs now, or when the next one is started."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    backoff: float = field(default=0.0)
    max_backoff: float = MAX_BACKOFF_SECONDS

    def record_exit(self, code: int) -> None:
        """Schedule the restart of a process that ended with ``code``."""
        self.process = None
        now = time.monotonic()
        if code == CODE_CHANGED:
            logger.info("Worker process %d stopped because its code has changed. Restarting it.", self.number)
            self.start_at, self.backoff = now, 0.0
            return
        if now - self.started >= STABLE_AFTER_SECONDS:
            self.backoff = 0.0
        self.start_at = now + self.backoff
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        logger.error("Worker process %d %s. Restarting it in %.1f s.", self.number, how, self.backoff)
        self.backoff = min(max(2 * self.backoff, FIRST_BACKOFF_SECONDS), self.max_backoff)


class Supervisor:
    """Keeps a number of ``manage.py automation_worker`` processes running.

    Args:
        processes: Number of child processes.
        arguments: Command line options for each child.
        grace: How long a child may continue after SIGTERM.
        heartbeat_file: File that the first child touches while it is alive. The other children use numbered files
            beside it.
        max_backoff: Longest delay in seconds before a child that ended is restarted.
    """

    def __init__(
        self,
        processes: int,
        arguments: Sequence[str],
        grace: timedelta,
        heartbeat_file: str | None = None,
        max_backoff: float = MAX_BACKOFF_SECONDS,
    ) -> None:
        self.arguments = arguments
        self.grace = grace
        self.heartbeat_file = heartbeat_file
        self._children = [Child(number, max_backoff=max_backoff) for number in range(1, processes + 1)]
        self._signals = 0

    def run(self) -> int:
        """Keep the children running until SIGTERM or SIGINT; return 0 if all of them then ended in time, else 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for stale_file in existing_paths(self.heartbeat_file) if self.heartbeat_file else ():
            os.unlink(stale_file)  # an earlier worker may have had more processes
        lifeline, write_end = os.pipe()
        while not self._signals:
            for child in self._children:
                self._restart_if_ended(child, lifeline)
            time.sleep(CHECK_INTERVAL_SECONDS)
        failures = self._stop()
        os.close(lifeline)
        os.close(write_end)
        return 1 if failures else 0

    def _restart_if_ended(self, child: Child, lifeline: int) -> None:
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return
            child.record_exit(code)
        if time.monotonic() >= child.start_at and not self._signals:
            child.started = time.monotonic()
            child.process = self._start(child, lifeline)

    def _start(self, child: Child, lifeline: int) -> subprocess.Popen[bytes]:
        options = [*self.arguments, "--lifeline", str(lifeline), "--started", str(time.time())]
        if self.heartbeat_file:
            options += ["--heartbeat-file", path_of(self.heartbeat_file, child.number)]
        return subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD_BOOTSTRAP, os.pathsep.join(sys.path), "automation_worker", *options],
            pass_fds=[lifeline],
            start_new_session=True,  # Ctrl-C reaches the children once, through this process
        )

    def _stop(self) -> int:
        """Pass the signals on until all children have ended; return how many were killed or failed."""
        signals_sent = 0
        deadline = time.monotonic() + self.grace.total_seconds() + KILL_DELAY_SECONDS
        failures = 0
        while running := [child.process for child in self._children if child.process is not None]:
            if signals_sent < min(self._signals, 2):
                signals_sent += 1
                for process in running:
                    process.terminate()
            if time.monotonic() >= deadline:
                for process in running:
                    logger.error("Worker process with pid %d did not end in time. Killing it.", process.pid)
                    process.kill()
                    process.wait()
            for child in self._children:
                if child.process is not None and (code := child.process.poll()) is not None:
                    child.process = None
                    # SIGTERM ends a child that has not installed its handlers yet; it has leased nothing.
                    failures += code not in (0, CODE_CHANGED, -signal.SIGTERM)
            time.sleep(CHECK_INTERVAL_SECONDS / 2)
        return failures

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
