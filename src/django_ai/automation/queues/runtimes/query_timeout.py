"""``Patience``: how long a look may take before it is given up.

A network that loses an answer leaves the connection open, and who waits for the answer waits for ever. The looks for
due rows take milliseconds and are repeated, so one that takes seconds is given up, and the next is made on a new
connection. Who looks again and again is often alone: without its pusher nobody in a Q2 cluster works.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from django.db import OperationalError

FIRST_SECONDS = 5.0
"""Each time in a row twice as long, so that a database that is slow answers at last."""
LONGEST_SECONDS = 80.0


class _NoAnswerError(BaseException):
    """Raised by a signal inside a look. No Exception: nobody may take it for one of his own on the way."""


class Patience:
    """Bounds the looks of one process."""

    def __init__(self) -> None:
        self.seconds = FIRST_SECONDS

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Raise ``OperationalError`` where the block takes too long."""
        try:
            with answered_within(self.seconds):
                yield
        except OperationalError:
            self.seconds = min(self.seconds * 2, LONGEST_SECONDS)
            raise
        self.seconds = FIRST_SECONDS


@contextmanager
def answered_within(seconds: float) -> Iterator[None]:
    """Raise ``OperationalError`` where the block takes longer. Only in a main thread whose alarm nobody uses, and on
    PostgreSQL and SQLite: MariaDB's driver listens to no signal while it waits (give it a ``read_timeout``)."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise _NoAnswerError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, where the exception got lost (in a ``__del__``, say)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _NoAnswerError:
        raise OperationalError(f"there was no answer for {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # where it rang just as the block ended
        signal.signal(signal.SIGALRM, before)
