"""``CommitGroup``: the progress of attempts that touched no table, which one statement writes for several rows.

An attempt that has touched no table has nothing to commit but its progress, with its history. Of rows that were claimed
together, a worker keeps that progress, and writes it once there are ``MAX_ROWS``, after ``MAX_SECONDS``, and in any
case before it claims again. While user code of another row is running, the thread of the heartbeat writes it, so it
waits for no slow code. Each row has its own fence. A row that is not written this way, because it is locked, its lease
was lost or the statement failed, is finished alone, as if its progress had never been kept. A row that its worker
continues (a run after a ``goto``) does so once its progress is written, and not before. The group also reads ahead what
the code of the next rows needs, as long as nothing can have changed it.

If the process dies while progress waits, those rows are performed again, as the one is whose progress was just being
written. What they have written is not in question: they wrote nothing. To keep that window small, only attempts that
were short (``SHORT_SECONDS``) are kept: one that called a slow service is written at once. PostgreSQL only: elsewhere
it is not known whether an attempt has touched a table.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections, models

from ..db.connections import close_if_broken
from ..db.writer import alias_of
from .advance import advance_unlocked
from .lease import release_unless_locked
from .wakeable import Wakeable

MAX_ROWS = 20
"""How many rows wait at most."""
MAX_SECONDS = 0.05
"""How long progress may wait, until the worker writes it or, while it performs a row, the heartbeat."""
SHORT_SECONDS = 0.01
"""How long an attempt may have taken whose progress is kept."""

_is_needed = threading.Event()
"""Set when the heartbeat must look at the groups of its process."""


def wait_until_needed(seconds: float) -> bool:
    """Wait until a group has progress that waits, or for ``seconds``. Return whether one has, and begin to wait anew:
    the caller looks afterwards, so it misses nothing."""
    if not _is_needed.wait(seconds):
        return False
    _is_needed.clear()
    return True


def look_again() -> None:
    """Let ``wait_until_needed`` return at once."""
    if not _is_needed.is_set():
        _is_needed.set()


def _after_fork() -> None:
    global _is_needed
    _is_needed = threading.Event()  # another thread may have held its lock


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, slots=True)
class Kept:
    """The progress of one attempt that waits: ``changes`` of its row, and its history.

    ``finish`` ends the attempt, given whether these were written, and returns whether they are now. ``resume``: what
    the worker does next with the row, if it keeps its lease.
    """

    row: Wakeable
    changes: Mapping[str, Any]
    record: models.Model | None
    finish: Callable[[bool], bool]
    resume: Callable[[], None] | None = None


class CommitGroup:
    """The progress that one worker keeps. Its own thread adds and ends; any thread may write. ``is_open``: whether
    progress is kept at all now. ``may_resume``: also that of rows which their worker continues."""

    def __init__(self) -> None:
        self.is_open = False
        self.may_resume = True
        self._waiting: list[Kept] = []
        self._written: list[Kept] = []
        self._since = float("inf")
        self._ahead = 1
        self._read: dict[Any, Wakeable] = {}
        self._read_at = 0.0
        self._was_kept = False
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def open(self, *, keeps: bool) -> None:
        """Begin with the rows of another claim. ``keeps``: whether progress is kept at all."""
        self.is_open = keeps
        self._read.clear()

    def read_ahead(self, rows: Sequence[Wakeable], place: int) -> None:
        """Before ``rows[place]`` is performed, read what its code needs, for some of the rows that follow, too.

        What was read is forgotten once it is old, or an attempt may have changed it: one whose progress was not kept.
        """
        row = rows[place]
        read = type(row).behaviour.read_ahead
        if read is None:
            return
        if row.pk not in self._read:
            row._state.fields_cache.clear()  # read by another thread, whose code waits
        if not self.is_open:
            return
        if not self._was_kept:
            self._ahead = 1
        if not self._was_kept or time.monotonic() - self._read_at > MAX_SECONDS:
            for each in self._read.values():
                each._state.fields_cache.clear()
            self._read.clear()
        self._was_kept = False
        if self._read.pop(row.pk, None) is None and self._ahead > 1:
            following = rows[place : place + self._ahead]
            self._read_at = time.monotonic()
            read(following)
            self._read = {each.pk: each for each in following[1:]}

    def add(self, kept: Kept) -> None:
        self._was_kept = True
        self._ahead = min(self._ahead * 2, MAX_ROWS)
        with self._lock:
            if not self._waiting:
                self._since = time.monotonic()
            self._waiting.append(kept)
        look_again()

    def keeps(self, row: Wakeable) -> bool:
        """Return whether the last attempt of ``row`` is not finished yet."""
        with self._lock:
            return any(each.row is row for each in (*self._waiting, *self._written))

    @property
    def rows(self) -> tuple[Wakeable, ...]:
        """The rows whose progress waits."""
        with self._lock:
            return tuple(each.row for each in self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether it is time to end the group."""
        return bool(self._written) or len(self._waiting) >= MAX_ROWS or self.has_waited

    @property
    def has_waited(self) -> bool:
        return bool(self._waiting) and time.monotonic() - self._since >= MAX_SECONDS

    def end(self) -> list[tuple[Kept, bool]]:
        """Write what waits. Return all that was kept since the last call, and whether it is written: the caller
        finishes each."""
        if not self._waiting and not self._written and not self._writing.locked():
            return []
        with self._writing:
            if len(self._waiting) > 1:
                try:
                    self._write()
                except Exception:
                    # Each is finished alone, which shows whose error it is.
                    close_if_broken(connections[alias_of(type(self._waiting[0].row))])
            with self._lock:
                written, self._written = self._written, []
                left, self._waiting = self._waiting, []
        return [*((each, True) for each in written), *((each, False) for each in left)]

    def write_waiting(self) -> None:
        """Write what has waited for long enough; called by the thread of the heartbeat."""
        if self.has_waited and self._writing.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._writing.release()

    @property
    def has_written(self) -> bool:
        """Whether the heartbeat has written progress of rows that their worker is to continue."""
        return bool(self._to_continue())

    def release_written(self, now: datetime) -> None:
        """Release those rows, so that they do not wait behind slow code; called by the thread of the heartbeat."""
        if self._writing.acquire(blocking=False):  # if not, the worker is about to continue them
            try:
                for row in self._to_continue():
                    if release_unless_locked(row, now):
                        row.lease = None  # its worker does not continue it
            finally:
                self._writing.release()

    def _to_continue(self) -> list[Wakeable]:
        with self._lock:
            return [each.row for each in self._written if each.resume is not None and each.row.lease is not None]

    def _write(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        found = advance_unlocked([(each.row, each.changes, each.record) for each in waiting])
        with self._lock:
            self._written += [each for each in waiting if each.row.pk in found]
            self._waiting = [each for each in self._waiting if each.row.pk not in found]
            self._since = time.monotonic()
