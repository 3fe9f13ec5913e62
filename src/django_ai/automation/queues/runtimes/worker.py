"""``Shift``: what one process of ``automation_worker`` does from its start until it is told to stop.

It looks for due rows with the ``Poller`` that all runtimes share, and performs them with ``drain``.
SIGTERM and SIGINT end it: nothing new is claimed, what was claimed but not begun goes back at once, and the step in
hand finishes; after the grace, or at a second signal, ``ShutdownInterrupt`` ends the step, and ``attempt`` gives its
row back. A process that is killed leaves its rows to the end of their leases. A supervisor that is gone is noticed by
the pipe that it held open, and ends the shift as SIGTERM does.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

from django.db import Error as DatabaseTrouble
from django.db import connections
from django.utils import timezone

from ...db.errors import fix_for
from .. import liveness
from ..attempt import ShutdownInterrupt
from ..drain import drain
from ..heartbeat import enlist, give_back, is_busy
from ..maintenance import begin
from ..models import Maintenance, Wakeable
from ..registry import wakeables
from ..worker_status import worker_status
from .poller import Poller

logger = logging.getLogger("django_ai.automation")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TROUBLE = 1.0
"""Seconds to wait after the database's trouble, at least."""


class WorkerLoop:
    """One process's work. ``models``: the kinds of rows that it performs (default: all). ``maintenance``: whether rows
    of maintenance are among them. ``poll``: seconds between two looks, where no NOTIFY comes and no timer is due
    before. ``grace``: how long the step in hand may go on after SIGTERM. ``lifeline``: a file descriptor that ends when
    the supervisor does.
    """

    def __init__(
        self,
        *,
        models: Collection[type[Wakeable]] | None = None,
        poll: float = 1.0,
        grace: timedelta = timedelta(seconds=25),
        maintenance: bool = True,
        lifeline: int | None = None,
    ) -> None:
        if models is not None or not maintenance:
            work = wakeables() if models is None else models
            models = {*work, Maintenance} if maintenance else {*work} - {Maintenance}
        self.models = models
        self.grace = grace
        self.lifeline = lifeline
        self.stopping = False
        self._ended = False
        self._releasing = False
        self._poller = Poller(poll, models=models)
        self._wake = self._poller.alarm()
        self._told, self._tell = os.pipe()

    def run(self) -> None:
        """Work until a signal or the supervisor's end. Must be called in the main thread."""
        self._hear()
        liveness.expect()
        try:
            enlist("worker", self.models)
            while not self.stopping:
                self._round()
        except SystemExit:
            if not self.stopping:
                raise
            if self._releasing:
                logger.warning("The step in hand did not end within the grace, and was given back.")
        finally:
            self._ended = True
            liveness.rest()
            worker_status.dismiss()
            self._poller.close()
            connections.close_all()

    def _round(self) -> None:
        try:
            liveness.expect(self._poller.poll)
            pause = self._poller.look()
            if not pause:
                self._poller.came_to(drain(heartbeat=True, models=self.models, stop=self._is_over, expendable=True))
                liveness.expect()
                _freshen()
                return
        except DatabaseTrouble as error:
            logger.warning("The worker could not use the database, and tries again: %s%s", error, fix_for(error))
            self._poller.recover()
            pause = max(self._poller.poll, TROUBLE)
        if not self.stopping:
            self._poller.sleep(pause)

    def burst(self) -> int:
        """Perform what is due, and return the number of rows. Raises what the database raises."""
        before = self._hear()
        try:
            enlist("worker", self.models)
            if self.models is None or Maintenance in self.models:
                begin(timezone.now())
            return drain(heartbeat=True, models=self.models, stop=self._is_over, expendable=True)
        except SystemExit:
            if not self.stopping:
                raise
            return 0
        finally:
            self._ended = True
            worker_status.dismiss()
            os.write(self._tell, b"!")
            for number, handler in before.items():
                signal.signal(number, handler)

    def _is_over(self) -> bool:
        return self.stopping

    def _hear(self) -> dict[signal.Signals, Any]:
        """Listen to signals and to the supervisor's end from now on; return the former handlers."""
        threading.Thread(target=self._leave, name="automation-leave", daemon=True).start()
        return {number: signal.signal(number, self._signalled) for number in SIGNALS}

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self._wake()
        with suppress(OSError):
            os.write(self._tell, b"!")
        if self._releasing and is_busy():
            raise ShutdownInterrupt(0)

    def _leave(self) -> None:
        """Wait for the end of the shift, give back what was not begun, and after the grace what was."""
        ends = [self._told] if self.lifeline is None else [self._told, self.lifeline]
        ready, _, _ = select.select(ends, [], [])
        if self._ended:
            return
        self.stopping = True
        self._wake()
        if self._told in ready:
            os.read(self._told, 1)
        try:
            give_back()
        except DatabaseTrouble as error:
            logger.warning("What was not begun could not be given back; its leases run out: %s", error)
        finally:
            connections.close_all()  # this thread's own
        select.select([self._told], [], [], self.grace.total_seconds())
        if self._ended:
            return
        self._releasing = True
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNALS[0])


def _freshen() -> None:
    """Close connections that a request would close at its end: too old, or found broken."""
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()
