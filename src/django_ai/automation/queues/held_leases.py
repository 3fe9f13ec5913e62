"""``HeldLeases``: the rows that one worker has claimed, some of them started, some not yet.

The heartbeat renews the leases of started rows until their timeout, and releases rows that were not started, so that
they do not wait behind a slow one. The functions below give the code that performs a row access to the leases of its
thread; a thread without them (inline, tests) has no heartbeat.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from ..values.clock import Clock
from . import liveness
from .commit_group import CommitGroup
from .interrupt import SECONDS_TO_RETURN, Deadline, set_current_deadline
from .lease import release, release_unless_locked, renew
from .wakeable import Wakeable

W = TypeVar("W", bound=Wakeable)


SECONDS_FOR_ANOTHER_RELEASE = 1.0
"""How long the heartbeat waits for another thread that is releasing rows."""


@dataclass(eq=False)
class HeldLeases:
    """The rows that one worker has claimed. Thread-safe. ``has_heartbeat``: whether a thread renews their leases.
    ``on_suspended``: called in the event loop when the coroutine of the started row begins to wait. ``may_be_more``:
    whether the last claim found as many rows as it asked for."""

    has_heartbeat: bool = False
    clock: Clock = timezone.now
    expendable: bool = False
    on_suspended: Callable[[HeldLeases], None] | None = None
    may_be_more: bool = False
    deadline: Deadline = field(init=False)
    commit_group: CommitGroup = field(default_factory=CommitGroup)
    _waiting: dict[int, Wakeable] = field(default_factory=dict)
    _started: tuple[Wakeable, ...] = ()
    _renew_until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _release_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.deadline = Deadline(expendable=self.expendable, on_suspended=self._suspended)

    def hold(self, rows: Sequence[Wakeable]) -> None:
        """Replace the rows that were not started by ``rows``, which were just claimed."""
        with self._lock:
            self._waiting = {row.pk: row for row in rows}

    def hold_also(self, row: Wakeable) -> None:
        """Hold ``row``, whose attempt is finished and which this worker continues, as one that was not started."""
        with self._lock:
            self._waiting[row.pk] = row

    def start(self, row: Wakeable) -> bool:
        """Start ``row``, if it is still held; return whether it is."""
        return bool(self.start_batch([row]))

    def start_batch(self, rows: Sequence[W]) -> list[W]:
        """Start those of ``rows`` that are still held, and return them."""
        with self._lock:
            mine = [row for row in rows if self._waiting.pop(row.pk, None) is not None]
            if mine:
                self._started = tuple(mine)
                liveness.expect_progress()
                # Until user code declares its timeout, a row gets no more than its first lease.
                self._renew_until = 0.0
            return mine

    def take_unstarted(self, share: int = 1) -> list[Wakeable]:
        """Return the first of the rows that were not started, one in ``share``, for another thread to perform. They are
        held no longer."""
        with self._lock:
            return [self._waiting.pop(pk) for pk in list(self._waiting)[: -(-len(self._waiting) // share)]]

    def _suspended(self) -> None:
        if self.on_suspended is not None:
            self.on_suspended(self)

    def keep_for(self, timeout: timedelta) -> None:
        """Let the heartbeat renew the leases of the started rows for as long as ``timeout``."""
        with self._lock:
            # And a little longer: after an interrupt, the result must still be written.
            self._renew_until = time.monotonic() + timeout.total_seconds() + SECONDS_TO_RETURN
            liveness.expect_progress(timeout.total_seconds() + SECONDS_TO_RETURN)

    @property
    def has_started(self) -> bool:
        return bool(self._started)

    def finish(self) -> None:
        """Note that the started rows were performed."""
        with self._lock:
            self._started = ()
            liveness.expect_progress()

    def release_unstarted(self, *, wait: bool = True) -> None:
        """Release the rows that were not started.

        Waits for another thread that is doing so: its process may end next. ``wait``: also for row locks. Without it
        a locked row stays held, for this worker or the next heartbeat, and a thread that waits for a row lock is
        waited for only ``SECONDS_FOR_ANOTHER_RELEASE``: the leases of other threads must not expire meanwhile.
        """
        if not self._release_lock.acquire(timeout=-1 if wait else SECONDS_FOR_ANOTHER_RELEASE):
            return
        try:
            with self._lock:
                rows, self._waiting = self._waiting, {}
            try:
                for row in list(rows.values()):
                    if wait:
                        release(row, self.clock())
                    elif not release_unless_locked(row, self.clock()):
                        continue
                    del rows[row.pk]
            finally:
                with self._lock:
                    self._waiting |= rows
        finally:
            self._release_lock.release()

    @property
    def has_unstarted(self) -> bool:
        return bool(self._waiting)

    def release_started(self) -> None:
        """Release the rows that are being performed."""
        with self._lock:
            rows, self._started = self._started, ()
        for row in rows:
            release(row, self.clock())

    @property
    def to_renew(self) -> tuple[Wakeable, ...]:
        """The started rows whose timeout has not passed: user code is running for them."""
        with self._lock:
            return self._started if time.monotonic() < self._renew_until else ()

    def renew(self) -> None:
        """Renew the leases of the started rows and release the others."""
        self.release_unstarted(wait=False)
        renew_started([self])


def renew_started(all_leases: Sequence[HeldLeases]) -> None:
    """Renew the leases of the started rows of several threads, and of those whose progress waits, with one statement
    for the rows of each model; called by the heartbeat."""
    started: dict[tuple[type[Wakeable], Clock], list[Wakeable]] = {}
    for leases in all_leases:
        for row in (*leases.to_renew, *leases.commit_group.rows):
            started.setdefault((type(row), leases.clock), []).append(row)
    for (_, clock), rows in started.items():
        tokens = {str(row.lease) for row in rows if row.lease is not None}
        if tokens:
            renew(rows, tokens, clock())


_local = threading.local()


def current_leases() -> HeldLeases | None:
    """Return the leases of this thread, if it performs rows."""
    return getattr(_local, "leases", None)


def set_current_leases(leases: HeldLeases | None) -> None:
    _local.leases = leases
    set_current_deadline(None if leases is None else leases.deadline)


def commit_group() -> CommitGroup | None:
    """Return the group in which this thread keeps progress now, if it does."""
    leases = current_leases()
    return leases.commit_group if leases is not None and leases.commit_group.is_open else None


def has_kept_progress(row: Wakeable) -> bool:
    """Return whether progress of ``row`` waits for a common write, so that nothing more is to be done with it now."""
    group = commit_group()
    return group is not None and group.keeps(row)


def is_working() -> bool:
    """Return whether this thread is a worker, which shares its connection with no other code."""
    leases = current_leases()
    return leases is not None and leases.has_heartbeat


def is_busy() -> bool:
    """Return whether this thread has started a row."""
    leases = current_leases()
    return leases is not None and leases.has_started


def keep_lease_for(timeout: timedelta) -> None:
    """Renew the lease of the started row for as long as ``timeout``; called where user code starts."""
    leases = current_leases()
    if leases is not None and leases.has_heartbeat:
        leases.keep_for(timeout)


@contextmanager
def bounded(timeout: timedelta, connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Interrupt the block, which runs user code, after ``timeout``, if this thread has a heartbeat. Raises
    ``AttemptTimeoutError``."""
    leases = current_leases()
    if leases is None or not leases.has_heartbeat:
        yield
        return
    with leases.deadline.bound(timeout.total_seconds(), connection):
        yield


def disarm_deadline() -> None:
    """Let no deadline of this thread interrupt what follows: the code of the engine."""
    leases = current_leases()
    if leases is not None:
        leases.deadline.disarm()


def was_interrupted() -> bool:
    """Return whether the user code that this thread ran last was interrupted."""
    leases = current_leases()
    return leases is not None and leases.deadline.fired


os.register_at_fork(after_in_child=lambda: _local.__dict__.clear())
