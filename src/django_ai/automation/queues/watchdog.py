"""The watchdog: ends the process if no Python code could run for too long, because C code holds the interpreter's lock.

It is the timer of ``faulthandler``, one thread of C per process. A fork copies the locks of that timer, but not its
thread: the child's next call of ``faulthandler`` would wait for a thread that does not exist, forever. So a fork
cancels the timer first, and the parent sets it again.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_WITHOUT_PYTHON = 15.0
"""How long C code may keep all threads from running before its process is ended."""

_NEVER = float("inf")
_ends_at = _NEVER
"""When the timer ends the process, of ``time.monotonic``."""
_guard = threading.Lock()


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """End the process if the block, which sleeps for at most ``seconds``, does not end long after. Then C code holds
    the interpreter's lock, and no Python thread can act."""
    _set(time.monotonic() + seconds + SECONDS_WITHOUT_PYTHON)
    try:
        yield
    finally:
        _set(_NEVER)


def _set(ends_at: float) -> None:
    global _ends_at
    with _guard:
        _ends_at = ends_at
        _start_timer()


def _start_timer() -> None:
    if _ends_at == _NEVER:
        faulthandler.cancel_dump_traceback_later()
    else:
        faulthandler.dump_traceback_later(max(_ends_at - time.monotonic(), 0.001), exit=True, file=2)


def _before_fork() -> None:
    _guard.acquire()
    if _ends_at != _NEVER:
        faulthandler.cancel_dump_traceback_later()


def _in_parent() -> None:
    if _ends_at != _NEVER:
        _start_timer()
    _guard.release()


def _in_child() -> None:
    global _guard, _ends_at
    _guard, _ends_at = threading.Lock(), _NEVER


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
