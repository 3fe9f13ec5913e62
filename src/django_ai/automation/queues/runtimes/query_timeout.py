"""``QueryTimeout``: how long a poll for due rows may take before it is abandoned.

A network that drops an answer leaves the connection open, and the client would wait for the answer forever. A poll
takes milliseconds and is repeated anyway, so one that takes seconds is abandoned and the next one uses a new
connection. This matters most in a Q2 cluster: while its pusher waits, none of its workers gets a task.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from django.db import OperationalError

INITIAL_TIMEOUT_SECONDS = 5.0
"""Doubled after each timeout in a row, so that a slow database gets the time to answer."""
MAX_TIMEOUT_SECONDS = 80.0


class _TimeoutReachedError(BaseException):
    """Raised by the signal handler inside the block. No ``Exception``, so that no ``except`` in between catches it."""


class QueryTimeout:
    """The timeout for the polls of one process."""

    def __init__(self) -> None:
        self.seconds = INITIAL_TIMEOUT_SECONDS

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise ``OperationalError`` if the block takes too long."""
        try:
            with time_limit(self.seconds):
                yield
        except OperationalError:
            self.seconds = min(self.seconds * 2, MAX_TIMEOUT_SECONDS)
            raise
        self.seconds = INITIAL_TIMEOUT_SECONDS


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``OperationalError`` if the block takes longer than ``seconds``.

    Works in a main thread whose alarm timer is not in use, on PostgreSQL and SQLite. MariaDB's driver handles no signal
    while it waits; give it a ``read_timeout`` instead.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _TimeoutReachedError

    previous_handler = signal.signal(signal.SIGALRM, interrupt)
    # Repeated every second: Python discards an exception that is raised in a ``__del__``, for instance.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeoutReachedError:
        raise OperationalError(f"The database did not answer within {seconds:g} s.") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the signal may arrive just as the block ends
        signal.signal(signal.SIGALRM, previous_handler)
