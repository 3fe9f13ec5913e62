"""Worker status: each worker process reports every few seconds that it lives, and which rows it performs.

A process is a worker once it is registered (``heartbeat.register_worker``): ``automation_worker`` registers when it
starts; processes of Django-Q2, Celery and Django tasks register at their first doorbell. A process that only saves
never registers, and neither does a web process in which a commit performs what is due: it does not count as a worker.

There is one row of ``Worker`` per process. The thread of the heartbeat writes it, outside the transactions of the work,
including while the process is idle. The row is a report and nothing else: no lease is taken from a process because of
it, and a process that cannot write it continues to work.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

from django.db import Error as AnyDatabaseError
from django.db import connections
from django.db.models import F

from ..db.connections import close_if_broken
from ..db.database_clock import DatabaseNow
from ..db.writer import alias_of
from .claim import new_token
from .models import Worker

REPORT_SECONDS = 20.0
"""Seconds between two reports of a process ..."""
BUSY_REPORT_SECONDS = 5.0
"""... and of one that has performed rows since the last report."""
RETRY_SECONDS = 3.0
"""After how many seconds a report that could not be written is retried."""
MAX_SILENCE = timedelta(seconds=60)
"""A process without a report for this long is dead, or cannot reach the database; either way it performs nothing."""
DEAD_WORKER_RETENTION = timedelta(days=1)


class WorkerStatus:
    """The reports of this process. Thread-safe; a fork is a process of its own, which is not registered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Be registered no longer, without a report about it."""
        self._name = ""
        self._runtime = ""
        self._kinds = ""
        self._queues = ""
        self._next = 0.0
        self._not_before = 0.0
        self._written = float("-inf")
        self._performed = 0
        self._worked: dict[str, float] = {}

    @property
    def is_registered(self) -> bool:
        return bool(self._name)

    def register(self, runtime: str, kinds: Iterable[str] = (), queues: Iterable[str] = ()) -> bool:
        """Register this process as a worker of ``runtime`` that performs rows of these kinds and queues (default: all).
        Return whether that is new.

        One process has one runtime, the first.
        """
        with self._lock:
            if self._name:
                return False
            self.reset()
            self._name, self._runtime = new_token(), runtime
            self._kinds, self._queues = ",".join(kinds), ",".join(queues)
            return True

    def also_polls(self, queues: Iterable[str]) -> None:
        """Note that this registered process performs rows of these queues, too (none: of all), and report it soon."""
        with self._lock:
            polled = _union(self._queues, ",".join(queues))
            if self._name and polled != self._queues:
                self._queues, self._next = polled, 0.0

    def record_performed(self, lane: str, performed: int) -> None:
        """Note that this process has performed rows of ``lane``, its name. Writes nothing."""
        with self._lock:
            if self._name:
                self._worked[lane] = time.monotonic()
                self._performed += performed

    @property
    def is_due(self) -> bool:
        """Whether it is time for a report."""
        now = time.monotonic()
        if not self.is_registered or now < self._not_before:
            return False
        return now >= self._next or (self._performed > 0 and now >= self._written + BUSY_REPORT_SECONDS)

    def report(self, busy_lanes: Iterable[str] = ()) -> None:
        """Write the report if it is due. ``busy_lanes``: names of the lanes of the rows that this process is
        performing. Never raises for a database failure."""
        with self._lock:
            if not self.is_due:
                return
            now = time.monotonic()
            self._worked.update(dict.fromkeys(busy_lanes, now))
            self._not_before = now + RETRY_SECONDS  # no other thread writes the report meanwhile
            name, performed = self._name, self._performed
            worked = {lane: round(now - moment, 3) for lane, moment in self._worked.items()}
        try:
            self._write(name, worked, performed)
        except AnyDatabaseError:
            close_if_broken(connections[alias_of(Worker)])
            return
        with self._lock:
            if name == self._name:
                self._written, self._next = now, now + REPORT_SECONDS
                self._performed -= performed

    def _write(self, name: str, worked: dict[str, float], performed: int) -> None:
        workers = Worker.objects.using(alias_of(Worker))
        found = workers.filter(name=name)
        report = {"seen_at": DatabaseNow(), "worked": worked, "queues": self._queues}
        if found.update(**report, performed=F("performed") + performed):
            return
        workers.create(
            name=name,
            runtime=self._runtime,
            host=socket.gethostname()[:60],
            pid=os.getpid(),
            kinds=self._kinds,
            queues=self._queues,
            started_at=DatabaseNow(),
            seen_at=DatabaseNow(),
            worked=worked,
            performed=performed,
        )
        with suppress(AnyDatabaseError):  # another process that starts may do the same
            workers.filter(seen_at__lt=DatabaseNow() - DEAD_WORKER_RETENTION).delete()

    def sign_off(self) -> None:
        """Be registered no longer, and report that the process has stopped. Never raises for a database failure."""
        with self._lock:
            name, is_known = self._name, time.monotonic() - self._written < MAX_SILENCE.total_seconds()
            performed = self._performed
            self.reset()
        if not name or not is_known:
            return  # a database that was unreachable a moment ago would only delay the end of the process
        with suppress(AnyDatabaseError):
            Worker.objects.using(alias_of(Worker)).filter(name=name).update(
                seen_at=DatabaseNow(), stopped_at=DatabaseNow(), performed=F("performed") + performed
            )


def _union(one: str, other: str) -> str:
    """Return all queues that one of two lists has. A list is empty (all queues), or has queues, or has excluded ones
    after ``!``."""
    first, second = set(filter(None, one.split(","))), set(filter(None, other.split(",")))
    if not first or not second:
        return ""
    excluding = [each for each in (first, second) if any(name.startswith("!") for name in each)]
    if len(excluding) == 2:
        return ",".join(sorted(first & second))
    if not excluding:
        return ",".join(sorted(first | second))
    named = first if excluding[0] is second else second
    return ",".join(sorted(name for name in excluding[0] if name[1:] not in named))


worker_status = WorkerStatus()


def _after_fork() -> None:
    worker_status._lock = threading.Lock()
    worker_status.reset()


os.register_at_fork(after_in_child=_after_fork)
