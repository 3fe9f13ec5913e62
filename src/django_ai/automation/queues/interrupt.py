"""Interrupting user code that has used up its ``timeout=``.

When a deadline has passed, the thread of ``deadline_watcher`` raises ``AttemptTimeoutError`` inside the user code: in
the main thread by a signal, which also ends a blocking system call (a socket without a timeout, ``time.sleep``); in
other threads as an asynchronous exception, which Python raises at the next bytecode. It also cancels the statement that
the database is executing. Code that swallows the exception gets it again. Only user code is interrupted:
``Deadline.armed`` is false before the engine commits anything.

Code that does not return within ``SECONDS_TO_RETURN`` after that (stuck in C, or in a thread's system call) cannot be
interrupted. A worker process that a supervisor restarts then ends immediately, and its row becomes due again when its
lease runs out. The same happens where C code holds the interpreter's lock for too long (``deadline_watcher``).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ..db.statements import cancel_statement
from ..exceptions import AttemptTimeoutError
from .deadline_watcher import wake_by

logger = logging.getLogger("django_ai.automation")


class ShutdownInterrupt(SystemExit):
    """Raised inside user code by a worker that must stop, after its grace period."""


SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2 if hasattr(signal, "SIGUSR2") else 0)
SECONDS_BETWEEN_INTERRUPTS = 1.0
"""How long after an interrupt code that swallowed the exception gets it again."""
EXIT_STUCK = 70
"""The exit code of a process whose user code could not be interrupted."""
SECONDS_TO_RETURN = 10.0
"""How long after its timeout user code may take to return before its process is ended."""


@dataclass(eq=False)
class Deadline:
    """Until when the user code of one worker thread may run. ``expendable``: whether the process ends if that code
    cannot be interrupted, because a supervisor starts another one. ``is_suspended``: whether the code is a coroutine
    that has begun to wait. ``on_suspended``: called in the event loop when it does. ``is_over``: whether the event loop
    has ended a coroutine after the timeout."""

    expendable: bool = False
    thread: int = field(default_factory=threading.get_ident)
    seconds: float = 0.0
    at: float = float("inf")
    armed: bool = False
    fired: bool = False
    is_over: bool = False
    connection: BaseDatabaseWrapper | None = None
    session: int | None = None
    since: float = 0.0
    is_suspended: bool = False
    on_suspended: Callable[[], None] | None = None
    _next: float = 0.0
    is_given_up: bool = False
    _is_shut_down: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def next_check(self) -> float:
        return self._next if self.armed else float("inf")

    @contextmanager
    def bound(self, seconds: float, connection: BaseDatabaseWrapper) -> Iterator[None]:
        """Let the block run for ``seconds``. Raises ``AttemptTimeoutError``, which replaces what an interrupted block
        raises."""
        _install_handler()
        self.connection, self.seconds = connection, seconds
        self.fired = self.is_over = self.is_suspended = False
        self.session = _session_id(connection)
        self.since = time.monotonic()
        self.at = self._next = self.since + seconds
        try:
            try:
                self.armed = True
                wake_by(self.at)
                yield
            finally:
                self.disarm()
        except BaseException as error:
            if self._is_shut_down:
                raise ShutdownInterrupt(0) from error
            is_late = self.fired or self.is_over
            if is_late and not isinstance(error, AttemptTimeoutError) and isinstance(error, Exception):
                raise AttemptTimeoutError(timeout_message(seconds)) from error
            raise
        if self._is_shut_down:
            raise ShutdownInterrupt(0)
        if self.fired or self.is_over:
            # The block returned at the last moment, or swallowed the exception: its time is over all the same.
            raise AttemptTimeoutError(timeout_message(seconds))

    @contextmanager
    def postponed(self, seconds: float) -> Iterator[float | None]:
        """Interrupt the thread ``seconds`` later while the block runs, because its code ends itself in time. Yield how
        many seconds are left to that code; None if nothing limits it."""
        with self._lock:
            is_limited, end = self.armed, self.since + self.seconds
            if is_limited:
                self.at += seconds
                self._next = max(self._next, self.at)
        try:
            yield max(end - time.monotonic(), 0.0) if is_limited else None
        finally:
            # Else it is over, and nothing is to interrupt the way out.
            if is_limited and time.monotonic() < end:
                with self._lock:
                    self.at = self._next = self.at - seconds
                wake_by(self.at)

    def suspend(self) -> None:
        """Note that the code is a coroutine that waits, so that its thread does nothing until it ends."""
        self.is_suspended = True
        if self.on_suspended is not None:
            self.on_suspended()

    def waits(self, seconds: float) -> bool:
        """Return whether user code is running and is taken to wait: as a coroutine, or because it has run for
        ``seconds``."""
        return self.armed and (self.is_suspended or time.monotonic() - self.since > seconds)

    def shut_down(self) -> None:
        """Raise ``ShutdownInterrupt`` in user code that runs in a thread other than the main one."""
        with self._lock:
            if self.armed and self.thread != threading.main_thread().ident:
                self._is_shut_down = self.fired = True  # so that ``disarm`` leaves no exception pending
                _raise_in(self.thread, ShutdownInterrupt)

    def disarm(self) -> None:
        """Interrupt nothing any more. Idempotent: an interrupt that comes while the block is entered, before it can be
        left, leaves the deadline armed."""
        while self.armed:
            with suppress(AttemptTimeoutError):  # it may come just now
                self._disarm()

    def _disarm(self) -> None:
        if self.thread == threading.main_thread().ident:
            self.armed = False  # from here on the signal handler raises nothing, also while this waits for the lock
        with self._lock:
            self.armed = False
            if self.fired and self.thread != threading.main_thread().ident:
                _swallow_pending()

    def check(self) -> None:
        """Interrupt the user code if its time is over. Called by the thread that watches deadlines."""
        now = time.monotonic()
        if not self.armed or now < self._next:
            return
        with self._lock:
            if not self.armed:
                return
            if now >= self.at + SECONDS_TO_RETURN and self.expendable and not self.is_given_up:
                logger.critical("User code still runs %.0f s after its timeout; the process ends.", now - self.at)
                self.is_given_up = True
                _end_process()
            self.fired = True
            self._next = now + SECONDS_BETWEEN_INTERRUPTS
            if self.thread == threading.main_thread().ident and SIGNAL:
                _deadlines[self.thread] = self
                signal.pthread_kill(self.thread, SIGNAL)
            else:
                _raise_in(self.thread)
            # Under the lock: no statement is cancelled once the user code has ended.
            if self.connection is not None:
                cancel_statement(self.connection, self.session)


_deadlines: dict[int, Deadline] = {}
_local = threading.local()


def current_deadline() -> Deadline | None:
    """Return the deadline of this thread, if it performs rows."""
    return getattr(_local, "deadline", None)


def set_current_deadline(deadline: Deadline | None) -> None:
    _local.deadline = deadline


def timeout_message(seconds: float) -> str:
    return f"The attempt ran for longer than its timeout of {seconds:g} s and was interrupted."


def _install_handler() -> None:
    """Handle the signal, in a main thread where no other code handles it."""
    if SIGNAL and threading.current_thread() is threading.main_thread() and signal.getsignal(SIGNAL) is signal.SIG_DFL:
        signal.signal(SIGNAL, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    deadline = _deadlines.get(threading.get_ident())
    if deadline is not None and deadline.armed:
        raise AttemptTimeoutError(timeout_message(deadline.seconds))


def _raise_in(thread: int, error: type[BaseException] = AttemptTimeoutError) -> None:
    """Let ``error`` be raised at the next bytecode of ``thread``."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def on_stuck(end_process: Callable[[], None]) -> None:
    """Let ``end_process`` end this process where user code cannot be interrupted. Default: it ends immediately."""
    global _end_process
    _end_process = end_process


def _exit() -> None:
    os._exit(EXIT_STUCK)


_end_process: Callable[[], None] = _exit


def _swallow_pending() -> None:
    """Take the exception that may be pending in this thread: request one and wait until it is raised.

    Python 3.11 does not clear its flag for such exceptions when one is only withdrawn (``SetAsyncExc`` with NULL), and
    with that flag set each function call of a thread that is traced (coverage, a debugger) is an endless loop.
    """
    with suppress(AttemptTimeoutError):
        _raise_in(threading.get_ident())
        while True:
            pass


def _session_id(connection: BaseDatabaseWrapper) -> int | None:
    """Return MariaDB's id of the session, which only the thread that owns the connection may read."""
    raw: Any = connection.connection
    return None if raw is None or connection.vendor != "mysql" else int(raw.thread_id())


os.register_at_fork(after_in_child=lambda: _local.__dict__.clear())
