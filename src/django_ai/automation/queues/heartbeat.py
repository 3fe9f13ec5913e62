"""The heartbeat: one thread per process renews the leases of the rows that are being performed.

At each beat the thread renews the leases of started rows and releases rows that were not started (``held_leases``). In
a process that is registered as a worker it also reports that the worker lives (``worker_status``), including while the
worker is idle. The thread has its own database connection while there is work, and dies with the process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.util import Finalize

from django.db import DatabaseError, connections

from ..conf import conf
from ..db import forking
from ..db.connections import dedicated_connection
from ..db.writer import alias_of
from . import deadline_watcher, liveness
from .async_code import cancel_coroutines
from .commit_group import MAX_SECONDS, look_again, wait_until_needed
from .held_leases import HeldLeases, current_leases, renew_started, set_current_leases
from .lanes import lane_of
from .registry import wakeables
from .wakeable import Wakeable
from .worker_status import worker_status

logger = logging.getLogger("django_ai.automation")

SQLITE_BUSY_TIMEOUT_MS = 500
"""How long a beat waits for the write lock of SQLite."""

_held: set[HeldLeases] = set()
_thread: threading.Thread | None = None
_guard = threading.Lock()


def set_leases(leases: HeldLeases | None) -> None:
    """Make ``leases`` those of this thread; None: this thread performs nothing any more."""
    previous = current_leases()
    set_current_leases(leases)
    if leases is None and previous is not None:
        liveness.expect_nothing()
        deadline_watcher.unwatch(previous.deadline)
        with _guard:
            _held.discard(previous)


def hold(leases: HeldLeases, rows: Sequence[Wakeable]) -> None:
    """Hold ``rows``, which were just claimed, and let the thread renew their leases if ``leases`` has a heartbeat."""
    leases.hold(rows)
    if not leases.has_heartbeat:
        return
    with _guard:
        _held.add(leases)
        _start_thread()
    deadline_watcher.watch(leases.deadline)


def release_unstarted() -> None:
    """Release immediately what this process has claimed and not started. Called from a separate thread when the
    process must end."""
    with _guard:
        all_leases = list(_held)
    for leases in all_leases:
        leases.release_unstarted(wait=False)
        leases.commit_group.release_written(leases.clock())


def waiting_threads(seconds: float) -> set[int]:
    """Return the threads whose user code waits, or has run for longer than ``seconds``."""
    with _guard:
        return {leases.deadline.thread for leases in _held if leases.deadline.waits(seconds)}


def stuck_threads() -> set[int]:
    """Return the threads whose user code could not be interrupted."""
    with _guard:
        return {leases.deadline.thread for leases in _held if leases.deadline.is_given_up}


def leases_behind(seconds: float) -> list[HeldLeases]:
    """Return the leases of rows that were claimed and not started by threads whose user code waits, or has run for
    ``seconds``."""
    with _guard:
        return [leases for leases in _held if leases.has_unstarted and leases.deadline.waits(seconds)]


def have_unstarted() -> bool:
    """Return whether a thread holds rows that it has not started."""
    with _guard:
        return any(leases.has_unstarted for leases in _held)


def interrupt_for_shutdown() -> None:
    """Raise ``ShutdownInterrupt`` in the user code of all threads but the main one."""
    with _guard:
        all_leases = list(_held)
    for leases in all_leases:
        leases.deadline.shut_down()
    cancel_coroutines()


def release_started() -> None:
    """Release the rows that are being performed, because the process ends. The late writes of their threads are
    refused. Rows whose code cannot be interrupted stay leased: they count a loss, as if they had ended the process."""
    with _guard:
        all_leases = [leases for leases in _held if not leases.deadline.is_given_up]
    for leases in all_leases:
        leases.release_started()


def register_worker(
    runtime: str,
    models: Collection[type[Wakeable]] | None = None,
    queues: Collection[str] | None = None,
    except_queues: Collection[str] = (),
) -> None:
    """Register this process as a worker of ``runtime`` that performs rows of ``models`` and of ``queues`` (default:
    all), but not of ``except_queues``. The process then reports that it lives, until it ends. If it is registered
    already, this only adds the queues.

    Our runtimes call it. A runtime of your own calls it in each of its worker processes, before it performs anything.
    """
    if queues is not None and not queues:
        return  # a doorbell for a task queue that the settings do not name
    kinds = [] if models is None else [each.kind for each in wakeables() if each in models]
    polled = [*sorted(queues or ()), *(f"!{name}" for name in sorted(except_queues))]
    if not worker_status.register(runtime, [] if len(kinds) == len(wakeables()) else kinds, polled):
        worker_status.also_polls(polled)
        return
    worker_status.report()
    with _guard:
        _start_thread()
    # Processes that multiprocessing has started do not run atexit hooks.
    Finalize(None, worker_status.sign_off, exitpriority=0)


def _start_thread() -> None:
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_run, name="automation-heartbeat", daemon=True)
        _thread.start()


def _run() -> None:
    alias = alias_of(wakeables()[0]) if wakeables() else "default"
    if connections[alias].settings_dict["OPTIONS"].get("pool"):
        # A full pool must not cost other workers their leases.
        connections[alias] = dedicated_connection(alias)
    while True:
        _sleep()
        with _guard:
            all_leases = list(_held)
        if not all_leases and not worker_status.is_due:
            connections.close_all()  # this thread's own: an idle worker needs none
        elif connections[alias].vendor == "sqlite":
            # The process may fork at any moment, and no connection to SQLite may be open then.
            with forking.sqlite_in_use:
                with suppress(DatabaseError), connections[alias].cursor() as cursor:
                    # The running step may itself hold the write lock: the other leases must not wait for that.
                    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}")
                _beat(all_leases)
                connections.close_all()
        else:
            _beat(all_leases)


def _sleep() -> None:
    """Sleep until the next beat. Meanwhile write progress that workers keep for longer than ``MAX_SECONDS``."""
    ends = time.monotonic() + conf().HEARTBEAT.total_seconds()
    while (left := ends - time.monotonic()) > 0 and wait_until_needed(left):
        time.sleep(min(MAX_SECONDS, left))
        with _guard:
            groups = [leases.commit_group for leases in _held]
        for group in groups:
            try:
                group.write_waiting()
            except Exception as error:
                logger.warning("The heartbeat could not write progress; its worker will: %s", error)
                connections.close_all()
            if group.rows:
                look_again()


def _beat(all_leases: list[HeldLeases]) -> None:
    releases = [partial(leases.release_unstarted, wait=False) for leases in all_leases if leases.has_unstarted]
    releases += [
        partial(leases.commit_group.release_written, leases.clock())
        for leases in all_leases
        if leases.commit_group.has_written
    ]
    for beat in (*releases, partial(renew_started, all_leases)):
        try:
            beat()
        except Exception as error:
            # The next beat comes before the lease ends. If that fails too, another worker may claim the row. The thread
            # must continue in any case.
            logger.warning("The heartbeat could not renew its leases and will retry: %s", error)
            connections.close_all()
    try:
        busy = [row for leases in all_leases for row in leases.to_renew]
        worker_status.report({lane_of(row).name for row in busy if type(row) in wakeables()})
    except Exception as error:
        logger.warning("This worker could not report that it lives and will retry: %s", error)
        connections.close_all()
    if not all_leases:
        connections.close_all()


def _after_fork() -> None:
    global _thread, _guard
    _thread, _guard = None, threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
