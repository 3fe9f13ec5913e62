"""Waiting in the foreground until a row has changed: for scripts, views and tests, never for workers.

The database is queried repeatedly, at intervals that double up to half a second: a worker that ends a run sends no
notification, because no process waits for most runs. Where commits perform the work (the runtime ``"inline"``), what
is due is performed before each query. A time machine waits by moving its own clock (``set_waiting``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from django.db import connections

from ..exceptions import DefinitionError, EndlessWaitError
from .causation import current_cause
from .drain import draining
from .notifier import InlineNotifier, get_notifier, ring

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.5

WaitUntil = Callable[[Callable[[], bool], timedelta | None], bool]

_override: WaitUntil | None = None


def set_waiting(wait: WaitUntil | None) -> None:
    """Wait with ``wait`` from now on in this process, which gets the condition and the timeout; None: in real time."""
    global _override
    _override = wait


def check_timeout(timeout: object, what: str) -> None:
    """Raise ``DefinitionError`` unless ``timeout`` is None or a timedelta of zero or more."""
    if timeout is not None and (not isinstance(timeout, timedelta) or timeout < timedelta(0)):
        raise DefinitionError(f"{what}: timeout={timeout!r} must be a timedelta of zero or more, or None.")


def refuse_inside_work(what: str, instead: str) -> None:
    """Raise ``EndlessWaitError`` if this thread performs rows: it would occupy the worker that it waits for."""
    if current_cause() is not None or draining():
        raise EndlessWaitError(
            f"{what} was called in a step, callback or handler: it would occupy the worker that it waits for. {instead}"
        )


def wait_until(alias: str, is_over: Callable[[], bool], timeout: timedelta | None, what: str) -> bool:
    """Wait until ``is_over()``, for ``timeout`` at most; return whether it is.

    Raises ``EndlessWaitError`` inside a transaction: workers do not see what it has written, and on SQLite they cannot
    write before it ends.
    """
    if is_over():
        return True
    if _override is not None:
        return _override(is_over, timeout)
    if connections[alias].in_atomic_block:
        raise EndlessWaitError(
            f"{what} was called inside a transaction: workers see a run only after the commit of the transaction that "
            "starts it. Leave transaction.atomic() first (with ATOMIC_REQUESTS: use non_atomic_requests). In a "
            "TestCase, which never commits, use the time machine, or a TransactionTestCase."
        )
    return _poll(alias, is_over, None if timeout is None else time.monotonic() + timeout.total_seconds())


def _poll(alias: str, is_over: Callable[[], bool], until: float | None) -> bool:
    pause = FIRST_PAUSE_SECONDS
    while True:
        if isinstance(get_notifier(), InlineNotifier):
            ring(alias)
        if is_over():
            return True
        left = pause if until is None else until - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
