"""WorkerStatus: each worker process says every few seconds that it lives, and which queues it looks at.

A process is a worker once it has enlisted (``heartbeat.enlist``): ``automation_worker`` does so when it starts,
processes of Django-Q2, Celery and Django tasks when they answer their first doorbell. A process that only saves, and a
web process in which a commit performs what is due, never does: whoever counts workers does not count it.

One row of ``Worker`` for each process, written by the heartbeat's thread beside the work and outside its transactions,
also while the process is idle. It is a sign of life and nothing else: no row is taken from anybody because of it, and a
process that cannot write it works on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

from django.db import Error as DatabaseTrouble
from django.db import connections
from django.db.models import F

from ..db.connections import close_if_broken
from ..db.writer import alias_of
from .lease import new_token
from .models import DatabaseNow, Worker

EVERY = 20.0
"""Seconds between two signs of life of a process ..."""
BUSY = 5.0
"""... and of one that has performed something since the last."""
AGAIN = 3.0
"""Seconds after which a sign of life that could not be written is tried again."""
DEAD_AFTER = timedelta(seconds=60)
"""A process that has given none for so long is dead, or cannot reach the database, and performs nothing either way."""
FORGET_AFTER = timedelta(days=1)


class WorkerStatus:
    """The sign of life of this process. Thread-safe; a fork is a process of its own, which has not enlisted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Be no worker any more, and say nothing about it."""
        self._name = ""
        self._runtime = ""
        self._queues = ""
        self._next = 0.0
        self._not_before = 0.0
        self._written = float("-inf")
        self._performed = 0
        self._worked: dict[str, float] = {}

    @property
    def is_enlisted(self) -> bool:
        return bool(self._name)

    def enlist(self, runtime: str, queues: Iterable[str] = ()) -> bool:
        """Be a worker of ``runtime`` that looks at ``queues`` (default: at all); return whether that is new.

        One process has one runtime, the first.
        """
        with self._lock:
            if self._name:
                return False
            self.forget()
            self._name, self._runtime, self._queues = new_token(), runtime, ",".join(queues)
            return True

    def worked(self, queue: str, performed: int) -> None:
        """Note that this process has performed rows. Writes nothing."""
        with self._lock:
            if self._name:
                self._worked[queue] = time.monotonic()
                self._performed += performed

    @property
    def is_due(self) -> bool:
        """Whether it is time for a sign of life."""
        now = time.monotonic()
        if not self.is_enlisted or now < self._not_before:
            return False
        return now >= self._next or (self._performed > 0 and now >= self._written + BUSY)

    def sign(self, is_busy: Iterable[str] = ()) -> None:
        """Give the sign of life if it is due. ``is_busy``: queues of rows that this process is busy with. Never raises
        for the database's trouble."""
        with self._lock:
            if not self.is_due:
                return
            now = time.monotonic()
            self._worked.update(dict.fromkeys(is_busy, now))
            self._not_before = now + AGAIN  # nobody else begins with it meanwhile
            name, performed = self._name, self._performed
            worked = {queue: round(now - moment, 3) for queue, moment in self._worked.items()}
        try:
            self._write(name, worked, performed)
        except DatabaseTrouble:
            close_if_broken(connections[alias_of(Worker)])
            return
        with self._lock:
            if name == self._name:
                self._written, self._next = now, now + EVERY
                self._performed -= performed

    def _write(self, name: str, worked: dict[str, float], performed: int) -> None:
        workers = Worker.objects.using(alias_of(Worker))
        if workers.filter(name=name).update(seen_at=DatabaseNow(), worked=worked, performed=F("performed") + performed):
            return
        workers.create(
            name=name,
            runtime=self._runtime,
            host=socket.gethostname()[:60],
            pid=os.getpid(),
            queues=self._queues,
            started_at=DatabaseNow(),
            seen_at=DatabaseNow(),
            worked=worked,
            performed=performed,
        )
        with suppress(DatabaseTrouble):  # another process that begins may do the same
            workers.filter(seen_at__lt=DatabaseNow() - FORGET_AFTER).delete()

    def dismiss(self) -> None:
        """Be no worker any more, and say so: the process ends in good order. Never raises for trouble of the
        database."""
        with self._lock:
            name, is_known = self._name, time.monotonic() - self._written < DEAD_AFTER.total_seconds()
            performed = self._performed
            self.forget()
        if not name or not is_known:
            return  # a database that was away just now would only hold up the end
        with suppress(DatabaseTrouble):
            Worker.objects.using(alias_of(Worker)).filter(name=name).update(
                seen_at=DatabaseNow(), stopped_at=DatabaseNow(), performed=F("performed") + performed
            )


worker_status = WorkerStatus()


def _after_fork() -> None:
    worker_status._lock = threading.Lock()
    worker_status.forget()


os.register_at_fork(after_in_child=_after_fork)
