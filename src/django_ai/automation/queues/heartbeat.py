"""One thread a process renews the leases of the rows that are being performed, and reports that the worker lives.

``HeldLeases`` are the rows that one worker has leased: a claimed batch, some started, some not yet. At each beat the
thread renews the lease of the started row (of all that are performed together) until its timeout, and releases the
rows that were not started, so that they need not wait behind a slow neighbour. The thread has its own database
connection while there is work, and dies with the process. Inline and in tests there is none. In a process that is
registered as a worker it also writes the signs of life (``worker_status``), including while the worker is idle.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import TypeVar

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from ..conf import conf
from ..db import forking
from ..db.connections import dedicated_connection
from ..db.writer import alias_of
from ..values.clock import Clock
from . import interrupt, liveness
from .interrupt import SECONDS_TO_RETURN, Deadline
from .lease import give_up, renew
from .models import Wakeable
from .registry import wakeables
from .worker_status import worker_status

logger = logging.getLogger("django_ai.automation")

W = TypeVar("W", bound=Wakeable)


@dataclass(eq=False)
class HeldLeases:
    """The rows that one worker has claimed. Thread-safe."""

    beating: bool = False
    clock: Clock = timezone.now
    expendable: bool = False
    _waiting: dict[int, Wakeable] = field(default_factory=dict)
    _started: tuple[Wakeable, ...] = ()
    _deadline: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dropping: threading.Lock = field(default_factory=threading.Lock)
    bound: Deadline = field(init=False)

    def __post_init__(self) -> None:
        self.bound = Deadline(expendable=self.expendable)

    def hold(self, rows: list[Wakeable]) -> None:
        with self._lock:
            self._waiting = {row.pk: row for row in rows}
        if self.beating:
            _beat(self)

    def start(self, row: Wakeable) -> bool:
        """Say whether ``row`` is still in hand, and begin with it."""
        return bool(self.start_together([row]))

    def start_together(self, rows: Sequence[W]) -> list[W]:
        """Begin with those of ``rows`` that are still in hand, and return them."""
        with self._lock:
            mine = [row for row in rows if self._waiting.pop(row.pk, None) is not None]
            if mine:
                self._started = tuple(mine)
                liveness.expect()
                # Until user code says how long it may take, a row gets no more than its first lease.
                self._deadline = 0.0
            return mine

    def keep_for(self, timeout: timedelta) -> None:
        """Keep the started row's lease alive for as long as ``timeout``."""
        with self._lock:
            # And a little longer: what is interrupted has still to write what came of it.
            self._deadline = time.monotonic() + timeout.total_seconds() + SECONDS_TO_RETURN
            liveness.expect(timeout.total_seconds() + SECONDS_TO_RETURN)

    @property
    def has_started(self) -> bool:
        return bool(self._started)

    def finish(self) -> None:
        with self._lock:
            self._started = ()
            liveness.expect()

    def drop(self, *, wait: bool = True) -> None:
        """Give back what was not started. Waits for another thread that is just doing so: its process may end next.

        ``wait``: also for what somebody has locked. Else that stays in hand, for this worker or the next beat.
        """
        with self._dropping:
            with self._lock:
                rows, self._waiting = self._waiting, {}
            try:
                for row in list(rows.values()):
                    if give_up(row, self.clock(), wait=wait):
                        del rows[row.pk]
            finally:
                with self._lock:
                    self._waiting |= rows

    @property
    def kept(self) -> tuple[Wakeable, ...]:
        """The started rows whose leases are kept alive: user code is busy with them, and may be."""
        with self._lock:
            return self._started if time.monotonic() < self._deadline else ()

    def beat(self) -> None:
        self.drop(wait=False)
        rows = self.kept
        for lease in {row.lease for row in rows} - {None}:
            renew(rows, str(lease), self.clock())


_local = threading.local()
_held: set[HeldLeases] = set()
_thread: threading.Thread | None = None
_guard = threading.Lock()


def current_leases() -> HeldLeases | None:
    return getattr(_local, "hands", None)


def is_working() -> bool:
    """Return whether this thread is a worker, which shares its connection with nobody."""
    hands = current_leases()
    return hands is not None and hands.beating


def keep_lease_for(timeout: timedelta) -> None:
    """Called where user code starts: keep the lease of the row in hand for as long as ``timeout``."""
    hands = current_leases()
    if hands is not None and hands.beating:
        hands.keep_for(timeout)


@contextmanager
def bounded(timeout: timedelta, connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Interrupt the block, which runs user code, after ``timeout``, where a heartbeat watches. Raises
    ``AttemptTimeoutError``."""
    hands = current_leases()
    if hands is None or not hands.beating:
        yield
        return
    with hands.bound.bound(timeout.total_seconds(), connection):
        yield


def hold_leases(hands: HeldLeases | None) -> None:
    """Make ``hands`` those of the current thread, or empty the thread's hands."""
    previous = current_leases()
    _local.hands = hands
    if hands is None and previous is not None:
        liveness.rest()
        interrupt.forget(previous.bound)
        with _guard:
            _held.discard(previous)


def enlist(runtime: str, models: Collection[type[Wakeable]] | None = None) -> None:
    """Make this process a worker of ``runtime`` that performs rows of ``models`` (default: all), which gives signs of
    life until it ends. Does nothing in one that is a worker already.

    Called by our runtimes. A runtime of your own calls it in each of its worker processes, before it performs anything.
    """
    queues = [] if models is None else [each.queue for each in wakeables() if each in models]
    if not worker_status.enlist(runtime, [] if len(queues) == len(wakeables()) else queues):
        return
    worker_status.sign()
    with _guard:
        _start_thread()
    # Of processes that multiprocessing has started, too, which know no atexit.
    Finalize(None, worker_status.dismiss, exitpriority=0)


def _beat(hands: HeldLeases) -> None:
    with _guard:
        _held.add(hands)
        _start_thread()
    interrupt.watch_over(hands.bound)


def _start_thread() -> None:
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_run, name="automation-heartbeat", daemon=True)
        _thread.start()


def give_back() -> None:
    """Give back what this process has claimed and not begun, at once: from a thread of its own, when it is to end."""
    with _guard:
        all_leases = list(_held)
    for hands in all_leases:
        hands.drop(wait=False)


def is_busy() -> bool:
    """Say whether this thread has begun with a row."""
    hands = current_leases()
    return hands is not None and hands.has_started


def _run() -> None:
    alias = alias_of(wakeables()[0]) if wakeables() else "default"
    if connections[alias].settings_dict["OPTIONS"].get("pool"):
        # A pool that is full must not cost the others their leases.
        connections[alias] = dedicated_connection(alias)
    while True:
        time.sleep(conf().HEARTBEAT.total_seconds())
        with _guard:
            all_leases = list(_held)
        if not all_leases and not worker_status.is_due:
            connections.close_all()  # this thread's own: an idle worker needs none
        elif connections[alias].vendor == "sqlite":
            # The process may fork at any moment, and no connection to SQLite may be open then.
            with forking.sqlite_in_use:
                with suppress(DatabaseError), connections[alias].cursor() as cursor:
                    # The step in hand may have the write lock itself: the other leases must not wait for that.
                    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_PATIENCE_MS}")
                _beat_all(all_leases)
                connections.close_all()
        else:
            _beat_all(all_leases)


SQLITE_PATIENCE_MS = 500
"""How long a beat waits for the write lock of SQLite."""


def _beat_all(all_leases: list[HeldLeases]) -> None:
    for hands in all_leases:
        try:
            hands.beat()
        except Exception as error:
            # The next beat comes before the lease ends; if that fails too, others may take the row. The thread must go
            # on in any case.
            logger.warning("The heartbeat could not renew its leases, and tries again: %s", error)
            connections.close_all()
    try:
        busy = [row for hands in all_leases for row in hands.kept]
        worker_status.sign({row.queue for row in busy if type(row) in wakeables()})
    except Exception as error:
        logger.warning("The sign of life of this worker could not be written, and is tried again: %s", error)
        connections.close_all()
    if not all_leases:
        connections.close_all()


def _after_fork() -> None:
    global _thread, _guard
    _thread, _guard = None, threading.Lock()
    _held.clear()
    _local.__dict__.clear()


os.register_at_fork(after_in_child=_after_fork)
