"""``Supervisor``: keeps the processes of ``automation_worker`` alive, and stops them. It opens no database connection.

Each child is a process of its own, started afresh and not forked, and shares nothing with the others but the database.
One that dies is started again, ever later if it dies at once. A child that does not end after its grace is killed. Each
child holds the reading end of a pipe whose other end only the supervisor has: when that is killed, the children end.
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

from ..liveness import file_of, files_of
from .reloading import CODE_CHANGED

logger = logging.getLogger("django_ai.automation")

BEGIN = """\
import os, sys
sys.path[:] = sys.argv.pop(1).split(os.pathsep)
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
"""How a child begins: it imports from where its supervisor does, and leaves the environment of what it starts alone."""
LOOK = 0.1
HEALTHY = 10.0
"""A child that lived so many seconds is started again at once."""
LONGEST_BACKOFF = 30.0
MERCY = 5.0
"""Seconds that a child gets beyond its grace before it is killed."""


@dataclass
class Child:
    """The place of one process: the process that has it now, or when the next is started."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    backoff: float = field(default=0.0)
    longest_backoff: float = LONGEST_BACKOFF

    def died(self, code: int) -> None:
        """Plan the next process of this place."""
        self.process = None
        now = time.monotonic()
        if code == CODE_CHANGED:
            logger.info("Worker process %d is started again with the changed code.", self.number)
            self.start_at, self.backoff = now, 0.0
            return
        if now - self.started >= HEALTHY:
            self.backoff = 0.0
        self.start_at = now + self.backoff
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        logger.error("Worker process %d %s; it is started again in %.1f s.", self.number, how, self.backoff)
        self.backoff = min(max(2 * self.backoff, 0.5), self.longest_backoff)


class Supervisor:
    """Runs ``processes`` children of ``manage.py automation_worker`` with the options ``arguments``. ``grace``: how
    long a child may go on after SIGTERM. ``heartbeat_file``: what the first child touches while it is alive; the others
    have files beside it. ``longest_backoff``: seconds after which a child that died is started again at the latest."""

    def __init__(
        self,
        processes: int,
        arguments: Sequence[str],
        grace: timedelta,
        heartbeat_file: str | None = None,
        longest_backoff: float = LONGEST_BACKOFF,
    ) -> None:
        self.arguments = arguments
        self.grace = grace
        self.heartbeat_file = heartbeat_file
        self._children = [Child(number, longest_backoff=longest_backoff) for number in range(1, processes + 1)]
        self._signals = 0

    def run(self) -> int:
        """Keep the children alive until SIGTERM or SIGINT; return 0 if all ended by themselves then, else 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        for left_over in files_of(self.heartbeat_file) if self.heartbeat_file else ():
            os.unlink(left_over)  # of a worker that had more processes, perhaps
        lifeline, held = os.pipe()
        while not self._signals:
            for child in self._children:
                self._tend(child, lifeline)
            time.sleep(LOOK)
        failures = self._stop()
        os.close(lifeline)
        os.close(held)
        return 1 if failures else 0

    def _tend(self, child: Child, lifeline: int) -> None:
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return
            child.died(code)
        if time.monotonic() >= child.start_at and not self._signals:
            child.started = time.monotonic()
            child.process = self._start(child, lifeline)

    def _start(self, child: Child, lifeline: int) -> subprocess.Popen[bytes]:
        mine = ["--lifeline", str(lifeline)]
        if self.heartbeat_file:
            mine += ["--heartbeat-file", file_of(self.heartbeat_file, child.number)]
        return subprocess.Popen(
            [sys.executable, "-P", "-c", BEGIN, os.pathsep.join(sys.path), "automation_worker", *self.arguments, *mine],
            pass_fds=[lifeline],
            start_new_session=True,  # Ctrl-C reaches the children once, through this process
        )

    def _stop(self) -> int:
        """Pass the signals on until all have ended; return how many had to be killed or failed."""
        told = 0
        deadline = time.monotonic() + self.grace.total_seconds() + MERCY
        failures = 0
        while running := [child.process for child in self._children if child.process is not None]:
            if told < min(self._signals, 2):
                told += 1
                for process in running:
                    process.terminate()
            if time.monotonic() >= deadline:
                for process in running:
                    logger.error("Worker process with pid %d did not end, and is killed.", process.pid)
                    process.kill()
                    process.wait()
            for child in self._children:
                if child.process is not None and (code := child.process.poll()) is not None:
                    child.process = None
                    # One that had not begun yet dies of the signal, with nothing in its hands.
                    failures += code not in (0, CODE_CHANGED, -signal.SIGTERM)
            time.sleep(LOOK / 2)
        return failures

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
