"""Crash points: each commit that a program makes has a name, and a test can kill the process there.

The package does not know about this. The connection is instrumented from outside: the COMMIT of each transaction that
has written, and each writing statement outside a transaction. A point is named after the innermost function of the
package that made it, with a number: ``queues.claim.claim#3``. At a point the process is killed with SIGKILL before the
write (``BEFORE``) or after it (``AFTER``), or the write succeeds and only its answer is lost (``UNANSWERED``): then the
connection is broken, and the process continues.

A program is a list of acts: requests to a web process, which the client repeats if it got no answer and the request was
not performed, and the work of a worker. It runs in a forked child. If the child dies, the test's process continues the
program from the act that was in progress, with the clock past every lease.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import socket
import sqlite3
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import Error as AnyDatabaseError
from django.db import connection, transaction
from django.utils import timezone

from django_ai.automation.agents.models import AgentRoute, AgentRun, HandlerExecution
from django_ai.automation.conf import conf
from django_ai.automation.events.models import CallbackExecution, CapturedWrite, Event, EventClaim
from django_ai.automation.queues import positions
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, BulkAction, HeldRow, Limiter, Pause, Slot
from django_ai.automation.queues.registry import due_times
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.workflows.models import Signal, StepExecution, WorkflowRun
from tests.apps.reservations.models import Effect
from tests.support.polling import until

BEFORE, AFTER, UNANSWERED = "before", "after", "unanswered"
MODES = (BEFORE, AFTER, UNANSWERED)
PRODUCT = "django_ai.automation."
WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE", "WITH")


# -- points ------------------------------------------------------------------------------------------------------------


@dataclass
class Points:
    """Records every committing write on this process's connection, and injects a fault at ``target``."""

    target: str | None = None
    mode: str = BEFORE
    seen: list[str] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)
    _written: bool = False

    @contextmanager
    def watching(self) -> Iterator[Points]:
        commit, rollback = connection._commit, connection._rollback

        def committing() -> Any:
            if not self._written:
                return commit()
            self._written = False
            return self._cross(commit)

        def rolling_back() -> Any:
            self._written = False
            return rollback()

        connection._commit, connection._rollback = committing, rolling_back
        try:
            with connection.execute_wrapper(self._statement):
                yield self
        finally:
            del connection._commit, connection._rollback

    def _statement(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.lstrip().upper().startswith(WRITES):
            return execute(sql, params, many, context)
        if connection.in_atomic_block:
            self._written = True
            return execute(sql, params, many, context)
        return self._cross(lambda: execute(sql, params, many, context), context["cursor"])

    def _cross(self, write: Callable[[], Any], cursor: Any = None) -> Any:
        place = _place()
        self._counts[place] += 1
        point = f"{place}#{self._counts[place]}"
        self.seen.append(point)
        struck = point == self.target
        if struck and self.mode == BEFORE:
            die()
        result = write()
        if struck and connection.vendor == "sqlite" and cursor is not None and cursor.description is not None:
            cursor.fetchall()  # UPDATE ... RETURNING commits with its last row
        if struck and self.mode == AFTER:
            die()
        if struck:
            lose_the_answer()
        return result


def _place() -> str:
    """Return the name of the innermost function of the package on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PRODUCT) and not module.endswith(".hearing"):  # which all statements pass
            return f"{module.removeprefix(PRODUCT)}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "caller"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose_the_answer() -> None:
    """Break the connection after the write succeeded, as a network failure does, and raise the driver's error."""
    if connection.vendor == "sqlite":  # no server, so no network: the disk fails after the commit record was written
        error: Exception = connection.Database.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR  # type: ignore[attr-defined]
    elif connection.vendor == "mysql":
        with socket.socket(fileno=os.dup(connection.connection.fileno())) as cable:
            cable.shutdown(socket.SHUT_RDWR)
        error = connection.Database.OperationalError(2013, "Lost connection to server during query")
    else:
        connection.connection.close()
        error = connection.Database.OperationalError("server closed the connection unexpectedly")
    with connection.wrap_database_errors:
        raise error


# -- programs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """An action, and when it happens: ``at``, the time after noon."""

    at: timedelta
    do: Callable[[], object]


@dataclass(frozen=True)
class Program:
    """Definitions, and acts that use them. ``effects``: the effects of an execution without faults."""

    name: str
    declare: Callable[[], object]
    acts: Sequence[Act]
    effects: Sequence[str]

    def run(self, clock: Any, first: int = 0, report: Callable[[int], object] = lambda number: None) -> None:
        start = clock.noon
        for number, act in enumerate(self.acts[first:], first):
            report(number)
            clock.now = max(clock.now, start + act.at)
            for _ in range(3):
                try:
                    act.do()
                    break
                except AnyDatabaseError:  # the client or the runtime retries on a new connection
                    connection.close()
                    recover(clock)


def work(hours: float = 0) -> Act:
    """Return a worker's act: perform all rows that are due now or within the next minute (retries)."""
    return Act(timedelta(hours=hours), _work)


def web(act: Callable[[], object], hours: float = 0) -> Act:
    """Return the act of a web request. It may be repeated, so it must first check whether it was performed."""
    return Act(timedelta(hours=hours), act)


def prune_in_batches(hours: float = 0) -> Act:
    return Act(timedelta(hours=hours), lambda: poll_due(timezone.now()))


def _work() -> None:
    clock: Any = timezone.now
    drain()
    end = clock.now + timedelta(minutes=1)
    while (times := due_times()) and min(times.values()) <= end:
        clock.now = max(clock.now, min(times.values()))
        drain()


def recover(clock: Any) -> None:
    """Do what a running installation does after a crash: leases expire, workers drain, reconciliation runs."""
    for _ in range(2):
        _work()
        clock.tick(conf().LEASE + timedelta(seconds=1))
        _work()
        poll_due(clock.now)


# -- results -----------------------------------------------------------------------------------------------------------


def picture() -> dict[str, Any]:
    """Return the rows that a program has left, without times and keys. They must not depend on crashes.

    Duplicate effects of steps that are not atomic and the history rows of lost attempts are therefore left out."""
    effects = list(Effect.objects.values_list("name", flat=True))
    return {
        "effects": sorted([name for name in effects if not name.startswith("outside")])
        + sorted({name for name in effects if name.startswith("outside")}),
        "events": _rows(Event, "event_name", "status", "armed", "pending_notifications", "fired", "error", "timezone"),
        "callbacks": _rows(CallbackExecution, "callback", "milestone", "status", "attempt"),
        "runs": _rows(WorkflowRun, "name", "status", "current_step", "data", "attempt", "visit", "waits__channel"),
        "steps": _rows(
            StepExecution.objects.exclude(outcome=StepExecution.LOST),
            "run__name",
            "step",
            "visit",
            "attempt",
            "outcome",
        ),
        "signals": [
            (name.split(":")[0], delivered is not None, consumed is not None, error)
            for name, delivered, consumed, error in Signal.objects.order_by("pk").values_list(
                "name", "delivered_at", "consumed_at", "error"
            )
        ],
        "agents": _rows(AgentRun, "name", "status", "data", "attempt"),
        "answers": _rows(
            HandlerExecution, "run__name", "handler", "milestone", "event__event_name", "status", "attempt"
        ),
        "claims": _rows(EventClaim, "event_name", "owner_kind", "events_left"),
        "outbox": _rows(CapturedWrite, "model", "entity_id", "operation", "status"),
        "routes": AgentRoute.objects.count(),
        "pauses": _rows(Pause, "target") + _rows(HeldRow, "kind", "target"),
        "bulk": _rows(BulkAction, "verb", "status", "done", "refused", "failed", "awaiting_code"),
        "actions": _rows(Action, "done", "actor", "reason"),
        "limits": _rows(Slot, "limiter__name", "limiter__limit", "state", "term"),
        "leased": [str(row) for model in WAKEABLES for row in model._base_manager.exclude(lease=None)],
        "due": [str(row) for model in WAKEABLES for row in model._base_manager.filter(wake_at__lte=timezone.now())],
    }


WAKEABLES = (CapturedWrite, Event, CallbackExecution, Signal, WorkflowRun, AgentRun, Slot, BulkAction)


def _rows(rows: Any, *columns: str) -> list[str]:
    # The channel of a child contains the key of its parent, which another attempt of the program does not repeat.
    found = (repr(row) for row in getattr(rows, "objects", rows).values_list(*columns))
    return sorted(re.sub(r"'subflow:\d+:", "'subflow:", each) for each in found)


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the missing and the unexpected rows of ``found``, one line each."""
    lines = []
    for name, wanted in expected.items():
        if found[name] == wanted:
            continue
        if not isinstance(wanted, list):
            lines.append(f"    {name}: {found[name]}, not {wanted}")
            continue
        missing, extra = Counter(wanted), Counter(found[name])
        lines += [f"    {name} lacks {row}" for row in (missing - extra).elements()]
        lines += [f"    {name} has {row}" for row in (extra - missing).elements()]
    return "\n".join(lines)


# -- processes ---------------------------------------------------------------------------------------------------------


SECONDS_OF_A_CHILD = 60
"""A child that runs for longer hangs."""


@dataclass
class Child:
    """The result of a program that ran in a child process."""

    act: int = 0
    points: list[str] = field(default_factory=list)
    error: str = ""
    killed: bool = False


def run_in_child(program: Program, clock: Any, target: str | None = None, mode: str = BEFORE) -> Child:
    """Run ``program`` in a forked process with a fault at ``target``, and return the result."""
    connection.close()  # the child must not share a socket with its parent
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child needs no threads of earlier tests
        pid = os.fork()
    if pid == 0:
        _be_the_child(program, clock, target, mode, writing)
    os.close(writing)
    child = Child()
    with os.fdopen(reading, "rb") as pipe:
        for line in pipe.read().decode().split("\0"):
            kind, _, text = line.partition("=")
            if kind == "act" and text.isdigit():
                child.act = int(text)
            elif kind == "point":
                child.points.append(text)
            elif line:
                child.error = text or line
    _, status = os.waitpid(pid, 0)
    child.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not child.killed and os.waitstatus_to_exitcode(status) != 0 and not child.error:
        child.error = f"The child ended with {status}."
    until(no_other_session_is_connected, 20, "The end of the dead process's transaction")
    return child


def _be_the_child(program: Program, clock: Any, target: str | None, mode: str, pipe: int) -> None:
    def say(kind: str, text: object) -> None:
        os.write(pipe, f"{kind}={text}\0".encode())

    code = 1
    # A child that hangs reports where, and the signal kills it. The engine's watchdog uses faulthandler's own timer.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=pipe, chain=True)
    signal.alarm(SECONDS_OF_A_CHILD)
    positions._prefixes.clear()  # a new process knows none, so each child makes the same commits
    try:
        with Points(target, mode).watching() as points:
            program.run(clock, report=lambda number: say("act", number))
        for point in points.seen:
            say("point", point)
        connection.close()
        code = 0
    except BaseException:
        say("error", traceback.format_exc())
    finally:
        os._exit(code)


def no_other_session_is_connected() -> bool:
    """Return whether the server has ended all other sessions of this database, and so released their locks."""
    if connection.vendor == "sqlite":
        return True
    sql = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> connection_id()",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return bool(cursor.fetchone()[0] == 0)


def wipe() -> None:
    """Empty the tables between two runs of a program."""
    quote = connection.ops.quote_name
    labels = ("captured", "app", "desk", "automation_agents", "automation_workflows", "automation_events")
    models = [model for label in labels for model in apps.get_app_config(label).get_models() if not model._meta.proxy]
    models += [Pause, HeldRow, Slot, Limiter, BulkAction, Action]
    with connection.constraint_checks_disabled(), transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        for model in models:
            cursor.execute(f"DELETE FROM {quote(model._meta.db_table)}")
