"""Interrupting user code that has used up its ``timeout=``.

One thread a process watches the deadline of what each worker thread runs. It needs no database, so a lock that user
code holds, or a server that does not answer, keeps nobody waiting for a timeout. When a deadline has passed the thread
raises ``AttemptTimeoutError`` inside the user code: in the main thread by a signal, which also ends a blocking system
call (a socket without a timeout, ``time.sleep``), in other threads as an asynchronous exception, which Python raises at
the next bytecode; and it cancels the statement that the database is busy with. Code that swallows it gets it again.
Only user code is interrupted: ``Deadline.armed`` is false before the engine commits anything.

Code that does not return for ``SECONDS_TO_RETURN`` after that (stuck in C, or in a thread's system call) cannot be
interrupted. A worker process that somebody starts again then ends at once, and its row comes back by its lease; so does
one in which C code has held the interpreter's lock for ``SECONDS_WITHOUT_PYTHON``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ..conf import conf
from ..db.connections import dedicated_connection
from ..exceptions import AttemptTimeoutError

logger = logging.getLogger("django_ai.automation")

SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2 if hasattr(signal, "SIGUSR2") else 0)
SECONDS_BETWEEN = 1.0
"""After so long code that has swallowed the exception gets it again."""
SECONDS_TO_RETURN = 10.0
"""So long after its timeout user code may take to return before its process is given up."""
SECONDS_WITHOUT_PYTHON = 15.0
"""So long C code may keep all threads from running before its process is given up."""


@dataclass(eq=False)
class Deadline:
    """Until when the user code of one worker thread may run. ``expendable``: whether the process ends if that cannot be
    interrupted, because something starts another."""

    expendable: bool = False
    thread: int = field(default_factory=threading.get_ident)
    seconds: float = 0.0
    at: float = float("inf")
    armed: bool = False
    fired: bool = False
    connection: BaseDatabaseWrapper | None = None
    session: int | None = None
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def next_look(self) -> float:
        """When ``watch`` has something to do next."""
        return self._next if self.armed else float("inf")

    @contextmanager
    def bound(self, seconds: float, connection: BaseDatabaseWrapper) -> Iterator[None]:
        """Let the block run for ``seconds``. Raises ``AttemptTimeoutError``, which takes the place of what the block
        raises when it was interrupted."""
        _listen()
        self.connection, self.fired, self.seconds = connection, False, seconds
        self.session = _session_of(connection)
        self.at = self._next = time.monotonic() + seconds
        try:
            try:
                self.armed = True
                _look_by(self.at)
                yield
            finally:
                while self.armed:
                    with suppress(AttemptTimeoutError):  # it may come just now, and must not leave the deadline armed
                        self._disarm()
        except BaseException as error:
            if self.fired and not isinstance(error, AttemptTimeoutError) and isinstance(error, Exception):
                raise AttemptTimeoutError(_said(seconds)) from error
            raise
        if self.fired:
            # It returned at the last moment, or swallowed the exception: its time is over all the same.
            raise AttemptTimeoutError(_said(seconds))

    def _disarm(self) -> None:
        if self.thread == threading.main_thread().ident:
            self.armed = False  # from here on the signal's handler raises nothing, also while the lock is waited for
        with self._lock:
            self.armed = False
            if self.fired and self.thread != threading.main_thread().ident:
                _swallow_pending()

    def watch(self) -> None:
        """Interrupt the user code if its time is over. Called by the thread that watches."""
        now = time.monotonic()
        if not self.armed or now < self._next:
            return
        with self._lock:
            if not self.armed:
                return
            if now >= self.at + SECONDS_TO_RETURN and self.expendable:
                logger.critical("User code still runs %.0f s after its timeout; the process ends.", now - self.at)
                os._exit(70)
            self.fired = True
            self._next = now + SECONDS_BETWEEN
            if self.thread == threading.main_thread().ident and SIGNAL:
                _deadlines[self.thread] = self
                signal.pthread_kill(self.thread, SIGNAL)
            else:
                _raise_in(self.thread)
            # Under the lock: nothing is cancelled once the user code has been left.
            if self.connection is not None:
                cancel_statement(self.connection, self.session)


def _swallow_pending() -> None:
    """Take the exception that may be pending in this thread, by asking for one and waiting until it is raised.

    Python 3.11 does not lower its flag for such exceptions where one is only taken back (``SetAsyncExc`` with NULL),
    and with that flag up each function call of a thread that is traced (coverage, a debugger) is an endless loop.
    """
    with suppress(AttemptTimeoutError):
        _raise_in(threading.get_ident())
        while True:
            pass


def _raise_in(thread: int) -> None:
    """Let ``AttemptTimeoutError`` be raised at the next bytecode of ``thread``."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(AttemptTimeoutError))


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """End the process if the block, which sleeps for at most ``seconds``, does not come to its end long after: C code
    holds the interpreter's lock then, and no thread of Python's can do anything about it."""
    faulthandler.dump_traceback_later(seconds + SECONDS_WITHOUT_PYTHON, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


_deadlines: dict[int, Deadline] = {}


# -- the thread that watches -------------------------------------------------------------------------------------------

_watched: set[Deadline] = set()
_thread: threading.Thread | None = None
_guard = threading.Lock()
_timer = threading.Condition()
_looks_at = float("inf")
_nudged = False
_guarded = False
"""Whether the thread sleeps under the watchdog."""


def watch_over(deadline: Deadline) -> None:
    """Watch ``deadline`` until ``forget``. Returns when the thread that watches can end an expendable process in which
    C code holds the interpreter's lock."""
    global _thread
    with _guard:
        _watched.add(deadline)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_run, name="automation-deadlines", daemon=True)
            _thread.start()
    if deadline.expendable:
        _wait_until_guarded()


def forget(deadline: Deadline) -> None:
    with _guard:
        _watched.discard(deadline)


def _wait_until_guarded() -> None:
    """Let the thread sleep under the watchdog before user code starts: code that holds the interpreter's lock at once
    would keep it from waking up, and so from setting the watchdog."""
    global _nudged
    with _timer:
        if not _guarded:
            _nudged = True
            _timer.notify_all()
            _timer.wait_for(lambda: _guarded, timeout=1.0)


def _look_by(moment: float) -> None:
    """Let the thread look by ``moment`` (of ``time.monotonic``), if it would sleep for longer."""
    global _nudged
    if moment < _looks_at:
        with _timer:
            _nudged = True
            _timer.notify_all()


def _run() -> None:
    while True:
        _sleep()
        with _guard:
            deadlines = list(_watched)
        for each in deadlines:
            each.watch()


def _sleep() -> None:
    """Sleep until the first deadline, and while an expendable process works no longer than ``HEARTBEAT``."""
    global _looks_at, _nudged, _guarded
    with _timer:
        _looks_at, _nudged = float("inf"), False  # who sets a deadline now is heard, also before this sleeps
    with _guard:
        nearest = min([each.next_look for each in _watched], default=float("inf"))
        expendable = any(each.expendable for each in _watched)
    if expendable:
        nearest = min(nearest, time.monotonic() + conf().HEARTBEAT.total_seconds())
    with _timer:
        if not _nudged:
            _looks_at = nearest
            seconds = max(nearest - time.monotonic(), 0.0)
            with watchdog(seconds) if expendable else nullcontext():
                _guarded = expendable
                _timer.notify_all()
                _timer.wait(seconds if seconds < threading.TIMEOUT_MAX else None)
                _guarded = False


def _after_fork() -> None:
    global _thread, _guard, _timer, _guarded
    _thread, _guard, _timer, _guarded = None, threading.Lock(), threading.Condition(), False
    _watched.clear()


os.register_at_fork(after_in_child=_after_fork)


# -- how user code is reached ------------------------------------------------------------------------------------------


def _said(seconds: float) -> str:
    return f"The attempt ran for longer than its timeout of {seconds:g} s and was interrupted."


def _listen() -> None:
    """Handle the signal, in a main thread where nobody else does."""
    if SIGNAL and threading.current_thread() is threading.main_thread() and signal.getsignal(SIGNAL) is signal.SIG_DFL:
        signal.signal(SIGNAL, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    deadline = _deadlines.get(threading.get_ident())
    if deadline is not None and deadline.armed:
        raise AttemptTimeoutError(_said(deadline.seconds))


def _session_of(connection: BaseDatabaseWrapper) -> int | None:
    """Return what MariaDB calls the session, which only the thread that owns a connection may ask for."""
    raw: Any = connection.connection
    return None if raw is None or connection.vendor != "mysql" else int(raw.thread_id())


def cancel_statement(connection: BaseDatabaseWrapper, session: int | None) -> None:
    """Cancel what the database does for ``connection`` now, from another thread, where its driver can."""
    raw: Any = connection.connection
    try:
        if raw is None:
            return
        if connection.vendor == "postgresql" and raw.info.transaction_status.name == "ACTIVE":
            raw.cancel()
        elif connection.vendor == "sqlite":
            raw.interrupt()
        elif session is not None:
            other = dedicated_connection(connection.alias)
            try:
                with other.cursor() as cursor:
                    # Of a session that does nothing it would be the next statement that is killed.
                    cursor.execute("SELECT command FROM information_schema.processlist WHERE id = %s", [session])
                    if cursor.fetchone() == ("Query",):
                        cursor.execute(f"KILL QUERY {session}")
            finally:
                other.close()
    except Exception as error:
        logger.warning("A statement whose time is over could not be cancelled: %s", error)
