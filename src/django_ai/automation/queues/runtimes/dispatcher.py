"""``Dispatcher``: the clock of a runtime whose workers wait for messages: it rings while rows are due.

It is the floor below such a runtime's doorbells. Those that were lost, with a broker that was flushed or down, are rung
again; timers ring when they are due, with no need of a broker's ETA or schedules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from django.db import Error as DatabaseTrouble
from django.db import connections

from .. import liveness
from .poller import Poller, automation_alias

logger = logging.getLogger("django_ai.automation")

LONGEST_GAP = 10.0
"""Seconds between two doorbells at last, while rows stay due: a queue keeps what busy workers do not take."""


class Dispatcher:
    """Looks until it is stopped. ``ring``: wake a worker; it may raise, and the next look tries again. ``poll``:
    seconds between two looks, where no timer is due before and no NOTIFY comes.

    ``guard``: where the process forks (a pool of workers), what keeps it from doing so while it is held. It is held
    while there is anything in hand that a fork must not copy: a lock, a connection in use, or one that would be closed
    for both when the copy of it goes.
    """

    def __init__(
        self,
        ring: Callable[[], object],
        poll: float = 1.0,
        guard: AbstractContextManager[object] | None = None,
    ) -> None:
        self._ring = ring
        self._forks = guard is not None
        self._guard = guard or nullcontext()
        self._poller = Poller(poll, longest_gap=LONGEST_GAP)
        self._stopping = False
        self._wake = self._poller.alarm()

    def run(self) -> None:
        """Look and ring until ``stop`` is called, in the thread that calls this."""
        try:
            while not self._stopping:
                self._round()
        finally:
            liveness.rest()
            self._poller.close()
            connections.close_all()

    def stop(self) -> None:
        """End ``run`` soon. May be called from another thread or from a signal handler."""
        self._stopping = True
        self._wake()

    def _round(self) -> None:
        pause = self._poller.poll
        liveness.expect(pause)
        try:
            with self._guard:
                pause = self._look()
        except DatabaseTrouble as error:
            logger.warning("The clock could not read the database, and tries again: %s", error)
            self._poller.recover()
            pause = max(pause, 1.0)
        except Exception as error:
            logger.warning("The clock could not ring, and tries again: %s: %s", type(error).__name__, error)
            pause = max(pause, 1.0)
        if not self._stopping:
            self._poller.sleep(pause)

    def _look(self) -> float:
        try:
            pause = self._poller.look()
            if not pause:
                self._ring()
                self._poller.came_to(1)  # of what the workers find we hear nothing
            return pause
        finally:
            # Of the drivers only psycopg knows in which process a connection was made, and leaves the parent's alone.
            if self._forks and connections[automation_alias()].vendor != "postgresql":
                self._poller.recover()
