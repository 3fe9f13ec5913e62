"""Presence: each process that performs rows says so every few seconds, so that a person can see who worked last.

One row of ``Worker`` for each process, written beside the work and outside its transactions. It is a sign of life and
nothing else: no row is taken from anybody because of it, and a process that cannot write it works on.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta

from django.db import Error as DatabaseTrouble
from django.db.models import F

from .lease import alias_of, new_token
from .models import Worker

EVERY = 5.0
"""Seconds between two signs of life of a process."""
FORGET_AFTER = timedelta(days=1)


class Presence:
    """The sign of life of this process. A fork is a process of its own."""

    def __init__(self) -> None:
        self._pid = 0
        self._name = ""
        self._performed = 0
        self._next = 0.0

    def worked(self, performed: int, now: datetime) -> None:
        """Note that this process has performed rows. Writes at most once in ``EVERY`` seconds; never raises for the
        database's trouble."""
        if self._pid != os.getpid():
            self._pid, self._name, self._performed, self._next = os.getpid(), new_token(), 0, 0.0
        self._performed += performed
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        try:
            self._write(now)
        except DatabaseTrouble:
            return  # the next sign of life says it
        self._performed = 0

    def _write(self, now: datetime) -> None:
        workers = Worker.objects.using(alias_of(Worker))
        known = workers.filter(name=self._name)
        if known.update(worked_at=now, performed=F("performed") + self._performed):
            return
        workers.filter(worked_at__lt=now - FORGET_AFTER).delete()
        workers.create(name=self._name, started_at=now, worked_at=now, performed=self._performed)


presence = Presence()
