"""The thread that watches deadlines: one per process, which sleeps until the first of them.

It renews no lease and waits for no row lock, so the locks of a step cannot delay its timeout. It connects to a server
only to cancel a statement (``db.statements``): a server that does not answer then delays the other deadlines of the
process until the driver gives up. While a process may be ended because of code that cannot be interrupted
(``expendable``), the thread sleeps under a watchdog of ``faulthandler``: C code that holds the interpreter's lock stops
all threads of Python, this one included.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import nullcontext
from typing import Protocol

from ..conf import conf
from .watchdog import watchdog


class Watched(Protocol):
    """A deadline that the thread checks."""

    @property
    def expendable(self) -> bool:
        """Whether the process may be ended if the code cannot be interrupted."""

    @property
    def next_check(self) -> float:
        """When to check next, of ``time.monotonic``; infinity: not at all."""

    def check(self) -> None:
        """Interrupt the code if its time is over."""


_watched: set[Watched] = set()
_thread: threading.Thread | None = None
_guard = threading.Lock()
_timer = threading.Condition()
_wakes_at = float("inf")
_is_woken = False
_is_guarded = False
"""Whether the thread sleeps under the watchdog."""


def watch(deadline: Watched) -> None:
    """Watch ``deadline`` until ``unwatch``. Returns once the thread can end an expendable process in which C code holds
    the interpreter's lock."""
    global _thread
    with _guard:
        _watched.add(deadline)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_run, name="automation-deadlines", daemon=True)
            _thread.start()
    if deadline.expendable:
        _wait_until_guarded()


def unwatch(deadline: Watched) -> None:
    with _guard:
        _watched.discard(deadline)


def wake_by(moment: float) -> None:
    """Let the thread check by ``moment`` (of ``time.monotonic``), if it would sleep for longer."""
    global _is_woken
    if moment < _wakes_at:
        with _timer:
            _is_woken = True
            _timer.notify_all()


def _wait_until_guarded() -> None:
    """Wait until the thread sleeps under the watchdog, before user code starts: code that takes the interpreter's lock
    immediately would keep the thread from waking up, and so from setting the watchdog."""
    global _is_woken
    with _timer:
        if not _is_guarded:
            _is_woken = True
            _timer.notify_all()
            _timer.wait_for(lambda: _is_guarded, timeout=1.0)


def _run() -> None:
    while True:
        _sleep()
        with _guard:
            deadlines = list(_watched)
        for each in deadlines:
            each.check()


def _sleep() -> None:
    """Sleep until the first deadline, and while an expendable process works no longer than ``HEARTBEAT``."""
    global _wakes_at, _is_woken, _is_guarded
    with _timer:
        _wakes_at, _is_woken = float("inf"), False  # from here on a new deadline is noticed, also before the sleep
    with _guard:
        nearest = min([each.next_check for each in _watched], default=float("inf"))
        expendable = any(each.expendable for each in _watched)
    if expendable:
        nearest = min(nearest, time.monotonic() + conf().HEARTBEAT.total_seconds())
    with _timer:
        if not _is_woken:
            _wakes_at = nearest
            seconds = max(nearest - time.monotonic(), 0.0)
            with watchdog(seconds) if expendable else nullcontext():
                _is_guarded = expendable
                _timer.notify_all()
                _timer.wait(seconds if seconds < threading.TIMEOUT_MAX else None)
                _is_guarded = False


def _after_fork() -> None:
    global _thread, _guard, _timer, _is_guarded
    _thread, _guard, _timer, _is_guarded = None, threading.Lock(), threading.Condition(), False
    _watched.clear()


os.register_at_fork(after_in_child=_after_fork)
