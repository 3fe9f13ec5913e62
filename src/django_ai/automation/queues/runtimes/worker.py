"""``WorkerLoop``: one process of ``automation_worker``, from its start until it is stopped.

It finds due rows with the ``Poller`` that all runtimes share, and performs them with ``drain``.
SIGTERM or SIGINT stops it: it claims nothing new, releases rows that it has claimed but not started, and finishes the
step that is running. After the grace, or at a second signal, ``ShutdownInterrupt`` ends the step and ``attempt``
releases its row. The rows of a process that is killed are claimed again when their leases expire. If the supervisor
ends, the pipe that it held open closes, and the loop stops as after SIGTERM.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

from django.db import Error as DatabaseFailure
from django.db import connections
from django.utils import timezone

from ...db.connection_slots import within_pool
from ...db.errors import hint_for
from .. import liveness
from ..drain import Beside, drain
from ..due import DuePoller
from ..heartbeat import register_worker, release_unstarted
from ..held_leases import is_busy
from ..interrupt import EXIT_STUCK, ShutdownInterrupt, on_stuck
from ..lanes import Lane
from ..maintenance import on_timekeeper_start
from ..models import Maintenance
from ..registry import wakeables
from ..wakeable import Wakeable
from ..worker_status import worker_status
from .poller import FIRST_WORK_INTERVAL_SECONDS, Poller, automation_alias
from .threads import WorkerThreads

logger = logging.getLogger("django_ai.automation")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORK_INTERVAL_SECONDS = 0.02
"""While rows stay due: the longest interval between two offers of them to another thread."""
BUSY_POLL_SECONDS = 0.1
"""Longest pause between two polls while threads are at work: one of them may leave what has just become due."""
DATABASE_RETRY_SECONDS = 1.0
"""Shortest pause after a database failure."""


class WorkerLoop:
    """Performs due rows in one process.

    Args:
        models: The models whose rows it performs. Default: all.
        queues: The names of the queues whose rows it performs. Default: all.
        except_queues: The names of queues whose rows it leaves to other workers.
        poll: Longest pause between two polls, in seconds. A NOTIFY, a commit on SQLite or a due timer ends it.
        grace: How long the running step may continue after SIGTERM.
        maintenance: Whether it also performs maintenance.
        lifeline: File descriptor that is closed when the supervisor ends.
        concurrency: How many rows it may perform beside each other while their user code waits (``threads``).
        max_connections: How many connections to the database these threads may have open at the same time.
    """

    def __init__(
        self,
        *,
        models: Collection[type[Wakeable]] | None = None,
        queues: Collection[str] | None = None,
        except_queues: Collection[str] = (),
        poll: float = 1.0,
        grace: timedelta = timedelta(seconds=25),
        maintenance: bool = True,
        lifeline: int | None = None,
        concurrency: int = 1,
        max_connections: int = 20,
    ) -> None:
        if models is not None or not maintenance:
            work = wakeables() if models is None else models
            models = {*work, Maintenance} if maintenance else {*work} - {Maintenance}
        self.models = models
        self.queues = queues
        self.except_queues = except_queues
        self.grace = grace
        self.lifeline = lifeline
        self.stopping = False
        self._is_finished = False
        self._is_grace_over = False
        self._is_stuck = False
        interval = {"max_work_interval": WORK_INTERVAL_SECONDS} if concurrency > 1 else {}
        self._poller = Poller(poll, models=models, queues=queues, except_queues=except_queues, **interval)
        self._threads: WorkerThreads | None = None
        if concurrency > 1:
            self._threads = WorkerThreads(
                concurrency,
                within_pool(connections[automation_alias()], max_connections),
                drain=self._drain,
                is_stopping=self._is_stopping,
                on_performed=self._poller.record_performed,
            )
        self._wake = self._poller.waker()
        self._stop_read_end, self._stop_write_end = os.pipe()

    def run(self) -> None:
        """Perform due rows until a signal arrives or the supervisor ends. Must be called in the main thread."""
        self._watch_for_stop()
        liveness.expect_progress()
        if self._threads is not None:
            on_stuck(self._give_up)
        try:
            register_worker("worker", self.models, self.queues, self.except_queues)
            try:
                while not self.stopping:
                    self._run_once()
            finally:
                if self._threads is not None:
                    self._finish(self._threads)
        except SystemExit:
            if not self.stopping:
                raise
            if self._is_grace_over:
                logger.warning("The running step did not end within the grace. Its row was released.")
        finally:
            self._is_finished = True
            liveness.expect_nothing()
            worker_status.sign_off()
            self._poller.close()
            connections.close_all()
        if self._is_stuck:
            sys.exit(EXIT_STUCK)

    def _run_once(self) -> None:
        try:
            liveness.expect_progress(self._poller.poll)
            pause = self._poller.seconds_until_due()
            if self._threads is not None:
                pause = self._offer(self._threads, pause)
            elif not pause:
                performed = self._drain(poller=self._poller)
                self._poller.record_performed(performed)
                liveness.expect_progress()
                _close_stale_connections()
                return
        except DatabaseFailure as error:
            logger.warning("The worker could not use the database and will retry: %s%s", error, hint_for(error))
            self._poller.reset_connection()
            pause = max(self._poller.poll, DATABASE_RETRY_SECONDS)
        if not self.stopping:
            self._poller.sleep(pause)

    def _offer(self, threads: WorkerThreads, pause: float) -> float:
        """Offer due rows to the threads; return for how long to sleep."""
        threads.raise_failure()
        is_left = threads.hand_on()
        if not pause:
            threads.offer()
        if not pause or is_left:
            return FIRST_WORK_INTERVAL_SECONDS
        return min(pause, BUSY_POLL_SECONDS) if threads.are_busy else pause

    def _finish(self, threads: WorkerThreads) -> None:
        if not self.stopping:  # a failure ends the process; the other threads have the grace to finish
            self._request_stop()
        if not threads.finish(lambda: self._is_grace_over) and not self._is_stuck:
            logger.warning("Running steps did not end within the grace. Their rows were released.")

    def _give_up(self) -> None:
        """Stop, because user code of a thread cannot be interrupted: the others finish, and the process is replaced."""
        self._is_stuck = True
        self._request_stop()

    def _request_stop(self) -> None:
        self.stopping = True
        self._wake()
        os.write(self._stop_write_end, b"!")

    def _drain(
        self,
        *,
        stop: Callable[[], bool] | None = None,
        beside: Beside | None = None,
        claimed: Sequence[Wakeable] = (),
        poller: DuePoller | None = None,
    ) -> int:
        return drain(
            heartbeat=True,
            models=self.models,
            queues=self.queues,
            except_queues=self.except_queues,
            stop=stop or self._is_stopping,
            expendable=True,
            beside=beside,
            claimed=claimed,
            poller=poller,
        )

    def burst(self) -> int:
        """Perform the rows that are due now, and return how many. Raises database errors."""
        previous_handlers = self._watch_for_stop()
        try:
            register_worker("worker", self.models, self.queues, self.except_queues)
            if Lane(Maintenance) in self._poller.selection:
                on_timekeeper_start(timezone.now())
            return self._drain()
        except SystemExit:
            if not self.stopping:
                raise
            return 0
        finally:
            self._is_finished = True
            worker_status.sign_off()
            os.write(self._stop_write_end, b"!")
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def _is_stopping(self) -> bool:
        return self.stopping

    def _watch_for_stop(self) -> dict[signal.Signals, Any]:
        """Start to watch for stop signals and for the supervisor's end; return the previous signal handlers."""
        threading.Thread(target=self._shut_down_on_request, name="automation-shutdown", daemon=True).start()
        return {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self._wake()
        with suppress(OSError):
            os.write(self._stop_write_end, b"!")
        if self._is_grace_over and is_busy():
            raise ShutdownInterrupt(0)

    def _shut_down_on_request(self) -> None:
        """Wait for a stop request; release the rows that were not started and, after the grace, the one that was."""
        sources = [self._stop_read_end] if self.lifeline is None else [self._stop_read_end, self.lifeline]
        ready, _, _ = select.select(sources, [], [])
        if self._is_finished:
            return
        self.stopping = True
        self._wake()
        if self._stop_read_end in ready:
            os.read(self._stop_read_end, 1)
        try:
            release_unstarted()
        except DatabaseFailure as error:
            logger.warning("Rows that were not started could not be released; their leases will expire: %s", error)
        finally:
            connections.close_all()  # of this thread
        select.select([self._stop_read_end], [], [], self.grace.total_seconds())
        if self._is_finished:
            return
        self._is_grace_over = True
        signal.pthread_kill(threading.main_thread().ident or 0, STOP_SIGNALS[0])


def _close_stale_connections() -> None:
    """Close connections that Django closes at the end of a request: too old, or broken."""
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()
