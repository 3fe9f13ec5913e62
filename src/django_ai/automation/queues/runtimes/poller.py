"""``Poller``: the one mechanism that looks for due rows, says how long to sleep, and is woken by a NOTIFY.

Everything that keeps time for a runtime has one: the Q2 brokers, ``automation_worker``, the dispatcher in a Celery
worker, ``automation_dispatcher``. So a timer of two seconds takes two seconds in each of them, without a broker's ETA,
and a lost message costs nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta

from django.db import Error as DatabaseTrouble
from django.db import connections
from django.utils import timezone

from ...db.notifications import Listener
from ...db.writer import alias_of
from ..due import look
from ..maintenance import begin, ensure_rows
from ..models import Maintenance, Wakeable
from ..registry import wakeables
from .query_timeout import Patience

FIRST_GAP = 0.02
LEAST_REST = 0.01
"""Seconds between two looks that a doorbell calls for: what rings meanwhile is answered by one look."""
LONGEST_REST = 0.1
"""After looks that others were quicker than, a doorbell calls for the next one at the latest after so many seconds."""


class Poller:
    """Looks for due rows on behalf of one process or thread.

    ``poll``: the longest sleep between two looks, in seconds. ``models``: the kinds of rows to look at (default: all).
    ``longest_gap``: while rows stay due, the process is sent to work ever more seldom, at last after this many seconds:
    the first time at once, a second time for the next worker soon after, and then a trickle.

    A doorbell wakes everybody who may answer it, and one of them gets the row. So a burst of doorbells is answered by
    one look, and who has looked in vain rests longer before the next one: the fewer looks, the more are idle.
    """

    def __init__(
        self, poll: float, *, models: Collection[type[Wakeable]] | None = None, longest_gap: float = 0.1
    ) -> None:
        self.poll = poll
        self.models = models
        self.longest_gap = longest_gap
        self.patience = Patience()
        self._gap = 0.0
        self._last = 0.0
        self._looked = 0.0
        self._rest = LEAST_REST
        self._was_rung = False
        self._listener: Listener | None = None
        self._alarm: tuple[int, int] | None = None
        self._is_new = True

    def look(self) -> float:
        """Return for how many seconds there is nothing to do; 0: rows are due. Raises what the database raises, and
        ``OperationalError`` where that does not answer."""
        self._looked = time.monotonic()
        with self.patience.bounded():
            if self.models is None or Maintenance in self.models:
                begin(timezone.now()) if self._is_new else ensure_rows(timezone.now())
                self._is_new = False
            moments = [due for model, due in look().items() if self.models is None or model in self.models]
        if not moments:
            return self._idle(self.poll)
        ahead = (min(moments) - timezone.now()) / timedelta(seconds=1)
        if ahead > 0:
            return self._idle(min(self.poll, ahead))
        since = time.monotonic() - self._last
        if since < self._gap:
            return self._gap - since
        self._gap = min(self._gap * 2, self.longest_gap) if self._gap else FIRST_GAP
        self._last = time.monotonic()
        return 0.0

    def _idle(self, seconds: float) -> float:
        self._gap = 0.0
        self.came_to(0)
        return seconds

    def came_to(self, performed: int) -> None:
        """Say how many rows were performed after a look: none, where others were quicker."""
        if performed:
            self._rest = LEAST_REST
        elif self._was_rung:
            self._rest = min(self._rest * 2, LONGEST_REST)
        self._was_rung = False

    def sleep(self, seconds: float) -> None:
        """Sleep, or be woken by a NOTIFY or an alarm."""
        if self._listener is None:
            queues = None if self.models is None else {model.queue for model in self.models}
            self._listener = Listener(automation_alias(), queues)
        alarm = self._alarm[0] if self._alarm else None
        self._was_rung = self._listener.wait(seconds, also=alarm)
        if self._was_rung:
            self._listener.rest(self._looked + self._rest - time.monotonic(), also=alarm)

    def alarm(self) -> Callable[[], None]:
        """Return what ends this and every later sleep: for another thread, or a signal handler, that says stop."""
        if self._alarm is None:
            self._alarm = os.pipe()
        end = self._alarm[1]

        def ring() -> None:
            with suppress(OSError):  # the watch is closed
                os.write(end, b"!")

        return ring

    def close(self) -> None:
        """Close the connection that LISTENs; the next sleep makes it anew."""
        if self._listener is not None:
            self._listener.close()

    def recover(self) -> None:
        """Close this thread's connection after the database's trouble; the next look makes it anew."""
        close_connection(automation_alias())


def automation_alias() -> str:
    """Return the database that holds the automation tables."""
    return alias_of(wakeables()[0]) if wakeables() else "default"


def close_connection(alias: str) -> None:
    """Close this thread's connection to the database ``alias``, however broken it is."""
    with suppress(DatabaseTrouble):
        connections[alias].close()
