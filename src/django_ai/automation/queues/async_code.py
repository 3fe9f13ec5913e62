"""User code that is ``async def``: it runs on an event loop while its thread waits for the result.

``awaited`` turns what a step, a handler or a callback has returned into its result. It uses asgiref, as does
Django itself: synchronous code that the coroutine calls, such as the ORM's ``asave()``, runs on the thread of the
attempt, so on its connection and in its transaction; and context variables, such as the cause of what is saved, follow
in both directions. In a worker with several threads all coroutines share the event loop of the process; elsewhere each
call has one of its own.

The event loop itself ends a coroutine whose timeout has passed, also one that waits for a socket. Only code that blocks
the loop is left to the interrupts of the thread (``interrupt``), ``SECONDS_TO_CANCEL`` later.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from asgiref.sync import async_to_sync

from ..exceptions import AttemptTimeoutError
from .held_leases import HeldLeases, current_leases
from .interrupt import timeout_message

_running: set[asyncio.Task[Any]] = set()
SECONDS_TO_CANCEL = 1.0
"""How long a coroutine may take to end after its timeout, before its thread is interrupted."""


def awaited(result: Any) -> Any:
    """Return ``result``; if it is a coroutine, run it and return what it returns."""
    if not inspect.iscoroutine(result):
        return result
    leases = current_leases()
    if leases is None or (left := leases.deadline.postponed_by(SECONDS_TO_CANCEL)) is None:
        return async_to_sync(_finish)(result)
    return async_to_sync(_finish_within)(result, left, leases)


def cancel_coroutines() -> None:
    """Cancel the coroutines that run in this process, because it must stop."""
    for task in list(_running):
        with suppress(RuntimeError):  # its loop has just been closed
            task.get_loop().call_soon_threadsafe(task.cancel)


async def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    task = asyncio.current_task()
    assert task is not None
    _running.add(task)
    try:
        return await coroutine
    finally:
        _running.discard(task)


async def _finish_within(coroutine: Coroutine[Any, Any, Any], left: float, leases: HeldLeases) -> Any:
    """Return the result of ``coroutine``. Raises ``AttemptTimeoutError`` when the ``left`` seconds of its timeout have
    passed. Its first wait is noted in ``leases``: the loop calls that once the coroutine has given it back."""
    limit = asyncio.timeout(left)
    waits = asyncio.get_running_loop().call_soon(leases.suspended)
    try:
        async with limit:
            return await _finish(coroutine)
    except TimeoutError as error:
        if not limit.expired():
            raise  # its own
        raise AttemptTimeoutError(timeout_message(leases.deadline.seconds)) from error
    finally:
        waits.cancel()
        leases.deadline.is_suspended = False
