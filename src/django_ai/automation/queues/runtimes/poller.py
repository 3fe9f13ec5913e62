"""``Poller``: the one mechanism that finds due rows, computes how long to sleep, and is woken by a NOTIFY or a commit.

Every runtime has one: the Q2 brokers, ``automation_worker``, the dispatcher in a Celery worker, and
``automation_dispatcher``. So a timer of two seconds takes two seconds with each of them, without an ETA of the broker,
and a lost message costs nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from django.db import Error as DatabaseFailure
from django.db import connections
from django.utils import timezone

from ...db.notifications import Listener
from ...db.writer import alias_of
from .. import pauses
from ..due import KnownDue, lanes_of, next_due
from ..lanes import Lane, Selection
from ..maintenance import ensure_rows, on_timekeeper_start
from ..models import Maintenance
from ..registry import wakeables
from ..wakeable import Wakeable
from .query_timeout import QueryTimeout

FIRST_WORK_INTERVAL_SECONDS = 0.02
"""While rows stay due: interval between the first two times that the process is sent to work. It doubles each time."""
MIN_NOTIFY_INTERVAL_SECONDS = 0.01
"""Shortest interval between two polls that a NOTIFY, or a commit on SQLite, causes: one poll answers all doorbells of
the interval."""
MIN_CLAIM_INTERVAL_SECONDS = 0.003
"""Shortest interval between a poll and the claim that a NOTIFY causes, while the claims find rows."""
MAX_NOTIFY_INTERVAL_SECONDS = 0.1
"""Longest such interval, for a worker whose polls found only rows that other workers had already claimed."""


class Poller:
    """Finds due rows on behalf of one process or thread.

    Each doorbell wakes every idle worker, and one of them gets the row. So one poll answers a burst of doorbells, and a
    worker that found nothing pauses longer before its next poll. This keeps the number of polls low, the more so the
    more workers are idle.

    A NOTIFY that names the lanes with due rows saves the poll: the process is sent to claim from them at once. What
    ``drain`` reads at its end, that nothing is due, is the result of the next poll (``DuePoller``).

    Args:
        poll: Longest sleep between two polls, in seconds.
        models: The models to poll. Default: all.
        queues: The names of the queues to poll. Default: all.
        except_queues: The names of queues not to poll.
        max_work_interval: While rows stay due, the process is sent to work at once, soon after for the next worker, and
            then at intervals that double up to this many seconds.
    """

    def __init__(
        self,
        poll: float,
        *,
        models: Collection[type[Wakeable]] | None = None,
        queues: Collection[str] | None = None,
        except_queues: Collection[str] = (),
        max_work_interval: float = 0.1,
    ) -> None:
        self.poll = poll
        self.selection = Selection.of(models, queues, except_queues)
        self.max_work_interval = max_work_interval
        self.query_timeout = QueryTimeout()
        self._work_interval = 0.0
        self._work_found_at = 0.0
        self._sent_at: datetime | None = None
        self._polled_at = 0.0
        self._notify_interval = MIN_NOTIFY_INTERVAL_SECONDS
        self._was_notified = False
        self._is_work_pause = False
        self._listener: Listener | None = None
        self._waker_pipe: tuple[int, int] | None = None
        self._is_first_poll = True
        self._known: KnownDue | None = None
        self._idle_times: Mapping[Lane, datetime] | None = None

    def seconds_until_due(self) -> float:
        """Poll once; return for how many seconds there is nothing to do, 0 if rows are due.

        Raises:
            django.db.Error: The database failed.
            OperationalError: The database did not answer within ``query_timeout``.
        """
        self._polled_at = time.monotonic()
        self._is_work_pause = False
        times, self._known, self._idle_times = self._idle_times, None, None
        if times is None and (foretold := self._named_by_doorbells()):
            self._known = KnownDue(foretold, is_complete=False)
            return self._send_to_work()
        if times is None:
            times = self._look()
        times = {lane: due for lane, due in times.items() if lane in self.selection}
        if not times:
            return self._idle_for(self.poll)
        first = min(times.values())
        ahead = (first - timezone.now()) / timedelta(seconds=1)
        if ahead > 0:
            return self._idle_for(min(self.poll, ahead))
        if self._sent_at is not None and first > self._sent_at:
            self._work_interval = 0.0  # what was due when the process was sent to work has been claimed
        since = time.monotonic() - self._work_found_at
        if since < self._work_interval:
            self._is_work_pause = True
            return self._work_interval - since
        self._known = KnownDue(times, is_complete=True)
        return self._send_to_work()

    def _look(self) -> Mapping[Lane, datetime]:
        with self.query_timeout.enforced():
            self._listening().prepare()
            if Lane(Maintenance) in self.selection:
                on_timekeeper_start(timezone.now()) if self._is_first_poll else ensure_rows(timezone.now())
                self._is_first_poll = False
            return next_due()

    def _named_by_doorbells(self) -> dict[Lane, datetime]:
        """Return the lanes for which doorbells have rung since the last poll. Empty: only a poll can tell."""
        names, now = self._listening().take_heard(), timezone.now()
        if not names or self._work_interval or pauses.current() != pauses.NOTHING:
            return {}
        return {lane: now for lane in lanes_of(names) or () if lane in self.selection}

    @property
    def has_heard(self) -> bool:
        """Whether doorbells have rung since the last poll."""
        return self._listening().has_heard

    def _send_to_work(self) -> float:
        if self._work_interval:
            self._work_interval = min(self._work_interval * 2, self.max_work_interval)
        else:
            self._work_interval = FIRST_WORK_INTERVAL_SECONDS
        self._work_found_at, self._sent_at = time.monotonic(), timezone.now()
        return 0.0

    def take_known(self) -> KnownDue | None:
        """Return what is due, for the ``drain`` that follows."""
        known, self._known = self._known, None
        return known

    def hears_more(self) -> bool:
        """Return whether doorbells have rung since the process was sent to work, or looked. Not where every commit
        wakes it: its own commits do, too."""
        return self._listening().receive()

    def before_look(self) -> None:
        """Discard the doorbells that have rung so far: ``drain`` is about to read for what."""
        self._listening().discard()

    def note_idle(self, times: Mapping[Lane, datetime]) -> None:
        """Note what ``drain`` has read at its end, as the result of the next poll. Not where every commit wakes this
        process: what was committed since then would not."""
        if not self._listening().hears_every_commit:
            self._idle_times = times

    def _idle_for(self, seconds: float) -> float:
        self._work_interval = 0.0
        self.record_performed(0)
        return seconds

    def record_performed(self, rows: int) -> None:
        """Record how many rows were performed after a poll: 0 if other workers had claimed them."""
        if rows:
            self._notify_interval = MIN_NOTIFY_INTERVAL_SECONDS
        elif self._was_notified:
            self._notify_interval = min(self._notify_interval * 2, MAX_NOTIFY_INTERVAL_SECONDS)
        self._was_notified = False

    def sleep(self, seconds: float) -> None:
        """Sleep until a NOTIFY, a commit on SQLite or the waker ends it, ``seconds`` at most."""
        listener = self._listening()
        waker = self._waker_pipe[0] if self._waker_pipe else None
        if self._is_work_pause and listener.hears_every_commit:
            listener.sleep(seconds, file=waker)  # the workers that perform the due rows commit all the time
            return
        self._was_notified = listener.wait(seconds, file=waker)
        if self._was_notified:
            is_calm = time.monotonic() - self._polled_at > MAX_NOTIFY_INTERVAL_SECONDS
            if is_calm and listener.hears_every_commit:
                # Commits that left nothing due long ago must not delay the poll for one that may have.
                self._notify_interval = MIN_NOTIFY_INTERVAL_SECONDS
            listener.sleep(self._polled_at + self._interval - time.monotonic(), file=waker)

    @property
    def _interval(self) -> float:
        """The shortest interval between a poll and the next one, or the next claim, that a doorbell causes."""
        if self._notify_interval == MIN_NOTIFY_INTERVAL_SECONDS and not self._listening().hears_every_commit:
            return MIN_CLAIM_INTERVAL_SECONDS
        return self._notify_interval

    def _listening(self) -> Listener:
        if self._listener is None:
            self._listener = Listener(automation_alias(), self.selection.is_concerned)
        return self._listener

    def waker(self) -> Callable[[], None]:
        """Return a function that ends this and every later sleep, to be called from a thread or a signal handler."""
        if self._waker_pipe is None:
            self._waker_pipe = os.pipe()
        write_end = self._waker_pipe[1]

        def wake() -> None:
            with suppress(OSError):  # the pipe is closed
                os.write(write_end, b"!")

        return wake

    def close(self) -> None:
        """Close the connection that LISTENs; the next sleep opens a new one."""
        if self._listener is not None:
            self._listener.close()

    def reset_connection(self) -> None:
        """Close this thread's connection after a database failure; the next poll opens a new one."""
        self._known = self._idle_times = None
        close_connection(automation_alias())


def automation_alias() -> str:
    """Return the alias of the database that holds the automation tables."""
    return alias_of(wakeables()[0]) if wakeables() else "default"


def close_connection(alias: str) -> None:
    """Close this thread's connection to the database ``alias``, even if it is broken."""
    with suppress(DatabaseFailure):
        connections[alias].close()
