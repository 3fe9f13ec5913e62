"""User code that is ``async def``: it runs on an event loop while its thread waits for the result.

``awaited`` turns what a step, a handler, a callback or a condition has returned into its result. It uses asgiref, as
does Django itself: synchronous code that the coroutine calls, such as the ORM's ``asave()``, runs on the thread that
awaits, so on its connection and in its transaction; and context variables, such as the cause of what is saved, follow
in both directions. In a worker with several threads all coroutines share the event loop of the process. A condition
that ``asave()`` evaluates runs on the event loop that has called it. Elsewhere each call has a loop of its own.

This module imports no models, because definitions import it, and models modules import these.

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
from .interrupt import Deadline, ShutdownInterrupt, current_deadline, timeout_message

_running: dict[asyncio.Task[Any], Coroutine[Any, Any, Any]] = {}
_cancelled: set[Coroutine[Any, Any, Any]] = set()
"""The coroutines of ``_running`` that were cancelled because the process must stop."""
SECONDS_TO_CANCEL = 1.0
"""How long a coroutine may take to end after its timeout, before its thread is interrupted."""


def awaited(result: Any) -> Any:
    """Return ``result``; if it is a coroutine, run it and return what it returns."""
    if not inspect.iscoroutine(result):
        return result
    deadline = current_deadline()
    try:
        if deadline is None:
            return async_to_sync(_finish)(result)
        with deadline.postponed(SECONDS_TO_CANCEL) as left:
            if left is None:
                return async_to_sync(_finish)(result)
            return async_to_sync(_finish_within)(result, left, deadline)
    except AttemptTimeoutError:
        if deadline is not None:
            deadline.is_over = True  # what awaits may swallow the error, as a save does with that of a condition
        raise
    except asyncio.CancelledError as error:
        if result in _cancelled:
            raise ShutdownInterrupt(0) from error
        raise
    finally:
        _cancelled.discard(result)
        if inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
            result.close()  # asgiref has refused to run it


def cancel_coroutines() -> None:
    """Cancel the coroutines that run in this process, because it must stop."""
    for task, coroutine in list(_running.items()):
        _cancelled.add(coroutine)
        with suppress(RuntimeError):  # its loop has just been closed
            task.get_loop().call_soon_threadsafe(task.cancel)


async def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    task = asyncio.current_task()
    assert task is not None
    _running[task] = coroutine
    try:
        return await coroutine
    finally:
        _running.pop(task, None)


async def _finish_within(coroutine: Coroutine[Any, Any, Any], left: float, deadline: Deadline) -> Any:
    """Return the result of ``coroutine``. Raises ``AttemptTimeoutError`` when the ``left`` seconds of its timeout have
    passed. Its first wait is noted in ``deadline``: the loop calls that once the coroutine has given it back."""
    limit = asyncio.timeout(left)
    waits = asyncio.get_running_loop().call_soon(deadline.suspend)
    try:
        async with limit:
            return await _finish(coroutine)
    except TimeoutError as error:
        if not limit.expired():
            raise  # its own
        raise AttemptTimeoutError(timeout_message(deadline.seconds)) from error
    finally:
        waits.cancel()
        deadline.is_suspended = False
