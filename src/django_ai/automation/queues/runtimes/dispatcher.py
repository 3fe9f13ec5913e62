"""``Dispatcher``: sends doorbells while rows are due, for a runtime whose workers only wait for messages.

A doorbell that was lost, because the broker was flushed or down, is sent again. A timer rings when it is due, without
an ETA or a schedule of the broker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from django.db import Error as DatabaseFailure
from django.db import connections

from .. import liveness
from .poller import Poller, automation_alias
from .task_queues import served_by, task_queues

logger = logging.getLogger("django_ai.automation")

MAX_RING_INTERVAL_SECONDS = 10.0
"""Longest interval between two doorbells while rows stay due: busy workers leave the doorbells in their queue."""
RETRY_SECONDS = 1.0
"""Shortest pause after the database or the broker has failed."""


class Dispatcher:
    """Polls for due rows and rings, until it is stopped.

    Args:
        ring: Wakes a worker of a task queue, whose name it is called with. It may raise; the dispatcher then tries
            again.
        poll: Longest pause between two polls, in seconds. A due timer, a NOTIFY or a commit on SQLite ends it.
        guard: In a process that forks (a pool of workers), a context manager that delays forks. It is held while the
            dispatcher uses what a fork must not copy: a lock, a connection in use, or a connection that the copy would
            close for both processes.
    """

    def __init__(
        self,
        ring: Callable[[str], object],
        poll: float = 1.0,
        guard: AbstractContextManager[object] | None = None,
    ) -> None:
        self._ring = ring
        self._process_forks = guard is not None
        self._guard = guard or nullcontext()
        # A poller of its own for each task queue: a long backlog of one must not delay the doorbells of the others.
        self._pollers = {
            name: Poller(poll, max_work_interval=MAX_RING_INTERVAL_SECONDS, **served_by(name)) for name in task_queues()
        }
        self._poller = self._pollers[""]
        self._is_stopping = False
        self._wake = self._poller.waker()

    def run(self) -> None:
        """Poll and ring in the calling thread until ``stop`` is called."""
        try:
            while not self._is_stopping:
                self._run_once()
        finally:
            liveness.expect_nothing()
            self._poller.close()
            connections.close_all()

    def stop(self) -> None:
        """End ``run`` soon. May be called from another thread or from a signal handler."""
        self._is_stopping = True
        self._wake()

    def _run_once(self) -> None:
        pause = self._poller.poll
        liveness.expect_progress(pause)
        try:
            with self._guard:
                pause = self._poll_and_ring()
        except DatabaseFailure as error:
            logger.warning("The dispatcher could not read the database and will retry: %s", error)
            self._poller.reset_connection()
            pause = max(pause, RETRY_SECONDS)
        except Exception as error:
            logger.warning(
                "The dispatcher could not send a doorbell and will retry: %s: %s", type(error).__name__, error
            )
            pause = max(pause, RETRY_SECONDS)
        if not self._is_stopping:
            self._poller.sleep(pause)

    def _poll_and_ring(self) -> float:
        try:
            pauses = []
            for task_queue, poller in self._pollers.items():
                pauses.append(poller.seconds_until_due())
                if not pauses[-1]:
                    self._ring(task_queue)
                    poller.record_performed(1)  # the workers do not report how many rows they found
            return min(pauses)
        finally:
            # Only psycopg knows which process opened a connection, and does not close the parent's in a fork.
            if self._process_forks and connections[automation_alias()].vendor != "postgresql":
                self._poller.reset_connection()
