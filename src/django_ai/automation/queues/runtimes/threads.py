"""``WorkerThreads``: threads of one worker process that drain beside each other.

Threads of Python do not compute at the same time, but they wait at the same time. So work is given to another thread
only while those at work wait in user code, for a service or a sleep; a process whose steps compute works with one
thread, as it would without this. A thread claims as many rows as it can start soon, and starts one after the other.
Once the code of one waits, the rows behind it go to another thread: at once where the event loop tells that a coroutine
waits, else when a call has taken ``WAITING_AFTER_SECONDS``. A thread whose user code has returned commits, and then
claims more, unless enough others are at work.

Each thread claims, performs and commits as ``drain`` does everywhere, with leases and a deadline of its own, and with
one of the connections that all share (``db.connection_slots``). All coroutines of these threads run on one event loop:
each thread is started from it by ``sync_to_async``, which is how asgiref knows where their coroutines belong.

The main thread polls, and offers; it performs nothing. A thread whose user code cannot be interrupted after its timeout
is given up: the process then stops as after SIGTERM, so that the others finish, and its supervisor starts another one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar

from asgiref.sync import sync_to_async
from django.db import Error as DatabaseFailure
from django.db import connections

from ...db.connection_slots import ConnectionSlots, put_down
from ..drain import Beside
from ..heartbeat import (
    have_unstarted,
    interrupt_for_shutdown,
    leases_behind,
    release_started,
    stuck_threads,
    waiting_threads,
)
from ..held_leases import HeldLeases
from ..interrupt import SECONDS_BETWEEN_INTERRUPTS
from ..wakeable import Wakeable
from .poller import automation_alias

P = ParamSpec("P")
T = TypeVar("T")

WAITING_AFTER_SECONDS = 0.02
"""A thread whose user code has run for this long is taken to wait."""
MAX_AT_ONCE = 4
"""How many threads are given work at the same time, and may be at work before another one gives way."""
IDLE_CONNECTION_SECONDS = 1.0
"""How long a connection that no thread uses stays open."""
CHECK_SECONDS = 0.02
INTERRUPT_SECONDS = 2.0
"""How long interrupted code may take to return when the process stops."""


class Drain(Protocol):
    """Performs ``claimed`` rows and then what is due, until ``stop``. ``beside``: the other threads."""

    def __call__(self, *, stop: Callable[[], bool], beside: Beside, claimed: Sequence[Wakeable]) -> int: ...


@dataclass(eq=False)
class _Member:
    """One of the threads: idle, or engaged until its ``drain`` returns. ``rows``: what it performs first."""

    number: int
    threads: WorkerThreads
    rows: Sequence[Wakeable] = ()
    is_engaged: bool = False
    ident: int = 0
    engaged: threading.Event = field(default_factory=threading.Event)

    def places(self) -> int:
        return self.threads.places()

    def gives_way(self) -> bool:
        return self.threads.must_give_way(self)

    def suspended(self, leases: HeldLeases) -> None:
        self.threads.continue_behind(leases)


class WorkerThreads:
    """Up to ``limit`` threads, which are started when there is work for them.

    Args:
        limit: Largest number of threads.
        connections_limit: How many connections to the automation database they may have open at the same time.
        drain: Performs what is due.
        is_stopping: Whether the process is to stop: then no thread starts another row.
        on_performed: Called by a thread with the number of rows that its ``drain`` has performed.
    """

    def __init__(
        self,
        limit: int,
        connections_limit: int,
        *,
        drain: Drain,
        is_stopping: Callable[[], bool],
        on_performed: Callable[[int], None],
    ) -> None:
        self.limit = limit
        self.connection_slots = ConnectionSlots(connections_limit)
        self.failure: BaseException | None = None
        self._drain = drain
        self._is_stopping = is_stopping
        self._on_performed = on_performed
        self._guard = threading.Lock()
        self._members: list[_Member] = []
        self._idle: list[_Member] = []
        self._runs: list[Future[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._is_finished = False

    @property
    def are_busy(self) -> bool:
        return any(each.is_engaged for each in self._members)

    @property
    def _are_working(self) -> bool:
        stuck = stuck_threads()
        return any(each.ident not in stuck for each in self._engaged())

    def offer(self) -> None:
        """Let another thread look for due rows, if all that are at work wait."""
        waiting = waiting_threads(WAITING_AFTER_SECONDS)
        if any(each.ident not in waiting for each in self._engaged()):
            return  # it looks again when it has performed its rows
        for _ in range(MAX_AT_ONCE if waiting else 1):
            if not self._engage():
                return

    def hand_on(self) -> bool:
        """Give rows that waiting threads have claimed and not started to other threads; without a free one, release
        them. Return whether a thread that does not wait holds such rows."""
        for leases in leases_behind(WAITING_AFTER_SECONDS):
            for share in range(MAX_AT_ONCE, 0, -1):
                if not self._engage_behind(leases, share):
                    break
            leases.release_unstarted(wait=False)
        return have_unstarted()

    def continue_behind(self, leases: HeldLeases) -> None:
        """Let another thread perform the rows that ``leases`` holds behind a coroutine, which has begun to wait; if
        there are none but more may be due, let it look."""
        if self._is_stopping():
            return  # they are released
        if leases.has_unstarted:
            self._engage_behind(leases)
        elif leases.may_be_more and not self._are_enough_at_work(self.limit):
            self._engage()

    def places(self) -> int:
        """Return how many rows a thread may claim, so that all together claim about as many as threads are free."""
        free = self.limit - len(self._engaged())
        return free // MAX_AT_ONCE + 1

    def must_give_way(self, member: _Member) -> bool:
        """Return whether this thread claims nothing more: enough of those that were started before it are at work."""
        return self._is_stopping() or self.failure is not None or self._are_enough_at_work(member.number)

    def raise_failure(self) -> None:
        """Raise what the ``drain`` of a thread has raised, if one has, once."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def finish(self, is_grace_over: Callable[[], bool]) -> bool:
        """Wait until no thread is at work but those that are stuck, and end the threads. After the grace interrupt
        their user code. Return whether all returned. The rows of those that did not are released, except for those of
        stuck threads."""
        while self._are_working and not is_grace_over():
            time.sleep(CHECK_SECONDS)
        started = next_interrupt = time.monotonic()
        while self._are_working and (now := time.monotonic()) < started + INTERRUPT_SECONDS:
            if now >= next_interrupt:  # not at each check: code that cleans up would be interrupted again
                interrupt_for_shutdown()
                next_interrupt = now + SECONDS_BETWEEN_INTERRUPTS
            time.sleep(CHECK_SECONDS)
        self._is_finished = True
        if self.are_busy:
            release_started()
            return False
        for member in self._members:
            member.engaged.set()
        self.connection_slots.close_idle()
        wait(self._runs, INTERRUPT_SECONDS)
        if self._loop is not None and self._loop_thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join(INTERRUPT_SECONDS)
        return True

    def _engaged(self) -> list[_Member]:
        return [each for each in self._members if each.is_engaged]

    def _are_enough_at_work(self, before: int) -> bool:
        """Return whether as many as may be at work do not wait, of the threads that were started ``before``."""
        waiting, count = waiting_threads(WAITING_AFTER_SECONDS), 0
        for each in self._members[:before]:
            count += each.is_engaged and each.ident not in waiting
            if count >= MAX_AT_ONCE:
                return True
        return False

    def _engage(self) -> bool:
        """Let a free thread perform what is due. Return whether there is one."""
        with self._guard:
            return self._start(self._free_member(), ())

    def _engage_behind(self, leases: HeldLeases, share: int = 1) -> bool:
        """Let a free thread perform one in ``share`` of the rows that ``leases`` holds and has not started, and then
        what is due. Return whether there are such rows and such a thread."""
        with self._guard:
            member = self._free_member()
            rows = leases.take_unstarted(share) if member is not None else ()
            if member is not None and not rows:
                self._idle.append(member)
                return False
            return self._start(member, rows)

    @staticmethod
    def _start(member: _Member | None, rows: Sequence[Wakeable]) -> bool:
        if member is None:
            return False
        member.rows, member.is_engaged = rows, True
        member.engaged.set()
        return True

    def _free_member(self) -> _Member | None:
        """Return an idle thread, the one that was at work last: its connection may still be open. Else a new one."""
        if self._idle:
            return self._idle.pop()
        if len(self._members) >= self.limit:
            return None
        member = _Member(len(self._members), self)
        self._members.append(member)
        run = sync_to_async(self._run, thread_sensitive=False, executor=_DaemonThreads())
        self._runs.append(asyncio.run_coroutine_threadsafe(run(member), self._event_loop()))
        return member

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop_thread = threading.Thread(
                target=_run_until_stopped, args=[self._loop], name="automation-event-loop", daemon=True
            )
            self._loop_thread.start()
        return self._loop

    def _run(self, member: _Member) -> None:
        member.ident = threading.get_ident()
        self.connection_slots.bind(connections[automation_alias()])
        while True:
            if not member.engaged.wait(IDLE_CONNECTION_SECONDS):
                connections.close_all()
                self.connection_slots.close_idle(IDLE_CONNECTION_SECONDS)
                member.engaged.wait()
            if self._is_finished:
                connections.close_all()
                self.connection_slots.close_idle()
                return
            member.engaged.clear()
            rows, member.rows = member.rows, ()
            try:
                self._on_performed(self._drain(stop=self._is_stopping, beside=member, claimed=rows))
            except BaseException as error:
                self.failure = error
            finally:
                for connection in connections.all(initialized_only=True):
                    with suppress(DatabaseFailure):
                        if connection.alias == automation_alias() and connection.vendor != "sqlite":
                            put_down(connection)
                        else:
                            connection.close_if_unusable_or_obsolete()
                with self._guard:
                    member.is_engaged = False
                    self._idle.append(member)


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


class _DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a daemon thread of its own: one that cannot be interrupted must not keep the process alive."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call, name="automation-worker", daemon=True).start()
        return future
