"""Maintenance: what the engine does for itself, as rows like any other work.

Each periodic task (to find what changed behind Django's back, to remove what is old) has one row of ``Maintenance``. It
is due, leased and performed by ``drain`` as a run or an event is, so one of N workers has it, beside the others; if
that one dies, its lease runs out and another goes on. Three things keep maintenance out of the way of work:

* a turn is a *bite* of ``BITE_SECONDS``: the task says where it stopped (``position``), and the row is due again at
  once;
* work that is due goes first. Only a row that has waited for ``PATIENCE`` has one bite between two rounds of work, so
  that a backlog that never ends does not end maintenance;
* each task has its own row, its own time and its own error: one that raises is tried again later, ever more seldom, and
  the others go on.

A floor registers its tasks in ``ready()``; the rows follow the code (``attend``), without a migration. Whoever wants it
done at once, in the foreground, calls ``run_all``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connections
from django.db.models import Q

from ..conf import conf
from ..db.connections import close_if_broken
from ..db.errors import is_database_failure
from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..values.clock import Clock
from ..values.json_text import storable
from ..values.text import last_line, trace_of
from .heartbeat import bounded, keep_lease_for
from .lease import advance
from .models import Maintenance, at_text

logger = logging.getLogger("django_ai.automation")

SLICE_SECONDS = 0.3
"""How long a turn of a task takes, about."""
PATIENCE = timedelta(seconds=3)
"""How long a row of maintenance waits at most while other work is due without end."""
FIRST_BACKOFF = timedelta(seconds=10)
LAST_BACKOFF = timedelta(hours=1)
ATTEND_SECONDS = 60.0
"""How often a process looks whether each task has its row."""

RECONCILE = "reconcile"
PRUNE = "prune"


@dataclass(frozen=True, slots=True)
class TimeSlice:
    """What a task gets: the moment, the ``position`` at which its last bite has stopped (None: it begins anew), and
    until when (of ``time.monotonic``) it may take. At least one step of it is done."""

    now: datetime
    position: Any = None
    until: float = float("inf")

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What came of a turn: how many rows were removed or put right, and where the next one goes on (JSON; None: all is
    done). ``rest``: how long at least the task has nothing to do then."""

    done: int = 0
    position: Any = None
    rest: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Task:
    """A periodic task. ``purpose``: ``RECONCILE`` or ``PRUNE``. ``every``: how long after it is done it begins
    again."""

    name: str
    purpose: str
    take: Callable[[TimeSlice], SliceResult]
    every: timedelta


_tasks: dict[str, Task] = {}


def register(name: str, purpose: str, take: Callable[[TimeSlice], SliceResult], every: timedelta) -> None:
    """Let workers call ``take`` bite by bite, and begin again ``every`` so long after it is done."""
    _tasks[name] = Task(name, purpose, take, every)


def register_reconciler(name: str, reconcile: Callable[[TimeSlice], SliceResult]) -> None:
    """Let ``reconcile`` be called every five minutes, bite by bite, and by ``poll_due``; it counts rows put right."""
    register(name, RECONCILE, reconcile, timedelta(minutes=5))


def register_pruner(
    name: str, prune: Callable[[TimeSlice], SliceResult], every: timedelta = timedelta(minutes=1)
) -> None:
    """Let ``prune`` be called every minute, bite by bite, and by ``cleanup_old``; it counts rows that it removed."""
    register(name, PRUNE, prune, every)


def tasks_for(purpose: str) -> list[Task]:
    return [task for task in _tasks.values() if task.purpose == purpose]


# -- the rows ----------------------------------------------------------------------------------------------------------

_attended: dict[tuple[str, str], float] = {}


def ensure_rows(now: datetime) -> None:
    """See to it that each task has its row. Costs a query a minute."""
    connection = connections[alias_of(Maintenance)]
    key = (connection.alias, str(connection.settings_dict["NAME"]))
    if time.monotonic() < _attended.get(key, 0.0):
        return
    known = set(Maintenance.objects.values_list("name", flat=True))
    missing = [Maintenance(name=name, wake_at=now) for name in _tasks if name not in known]
    insert_ignoring(Maintenance, missing)
    if not connection.in_atomic_block:  # else it may be rolled back
        _attended[key] = time.monotonic() + ATTEND_SECONDS


def run_soon(purpose: str, now: datetime) -> int:
    """Let the tasks for ``purpose`` be due now, without waiting for their period; return how many were not. One that
    has failed keeps its time."""
    names = [task.name for task in tasks_for(purpose)]
    resting = Maintenance.objects.filter(name__in=names, lease=None, wake_at__gt=now, failures=0)
    return resting.update(wake_at=now)


def begin(now: datetime) -> None:
    """Called once by each process that keeps time for workers: it may run new code, so what that wants is looked
    for."""
    _attended.clear()
    ensure_rows(now)
    run_soon(RECONCILE, now)


# -- a worker's path for one row ---------------------------------------------------------------------------------------


def perform(row: Maintenance, clock: Clock) -> None:
    """Take one bite, and write where it stopped. Raises ``LeaseLostError``, and what the database raises."""
    task = _tasks.get(row.name)
    if task is None:
        # Of another release. If that still runs it makes the row again.
        Maintenance.objects.filter(pk=row.pk, lease=row.lease, seq=row.seq).delete()
        return
    connection = connections[alias_of(Maintenance)]
    timeout = conf().STEP_TIMEOUT
    keep_lease_for(timeout)
    try:
        with bounded(timeout, connection):  # a reconciler calls conditions of the project
            bite = task.take(TimeSlice(clock(), row.position, time.monotonic() + SLICE_SECONDS))
            position = None if bite.position is None else json.dumps(bite.position)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        if is_database_failure(error, connection):
            raise
        close_if_broken(connection)
        logger.exception("%s failed, and is tried again later; the other tasks go on.", row)
        postpone(row, trace_of(error), clock())
        return
    is_complete = position is None
    now = clock()
    changes: dict[str, Any] = {
        "lease": None,
        "wake_at": now + max(task.every, bite.rest) if is_complete else now,
        "position": position,
        "done": row.done + bite.done,
        "failures": 0,
        "error": "",
    }
    advance(row, changes | {"completed_at": now} if is_complete else changes)


def postpone(row: Maintenance, reason: str, now: datetime, *, awaiting_deploy: bool = False) -> None:
    """Write why a task could not be done, and let it begin anew after a pause: nobody else would do its work. Fenced;
    raises ``LeaseLostError``."""
    backoff = min(FIRST_BACKOFF * 2 ** min(row.failures, 16), LAST_BACKOFF)
    changes: dict[str, Any] = {
        "lease": None,
        "wake_at": now + backoff,
        "position": None,  # it may be what cannot be read
        "failures": min(row.failures + 1, 1000),
        "error": storable(reason),
    }
    advance(row, changes)


# -- for an operator ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trouble:
    """A task that raises, or that nobody has taken for too long. ``since``: when it was due; ``error``: its last
    line."""

    task: str
    since: datetime
    failures: int
    error: str

    def __str__(self) -> str:
        if self.failures:
            return f"{self.task!r} failed {self.failures} time(s), tried again at {at_text(self.since)}: {self.error}"
        return f"{self.task!r} is due since {at_text(self.since)}"


def unhealthy_tasks(before: datetime) -> list[Trouble]:
    """Return the tasks that raised, and those that are due since ``before``. Reads only."""
    rows = Maintenance.objects.filter(Q(failures__gt=0) | Q(wake_at__lte=before)).order_by("name")
    return [Trouble(row.name, row.wake_at, row.failures, last_line(row.error)) for row in rows if row.wake_at]


# -- at once -----------------------------------------------------------------------------------------------------------


def run_all(purpose: str, now: datetime, until: float = float("inf")) -> int:
    """Do the tasks for ``purpose`` here and now, whatever their rows say; return how many rows were removed or put
    right.

    ``until``: stop at this moment (of ``time.monotonic``). Each task gets its part of the time that is left, so that
    none can use up all of it. One that raises does not stop the others: its error is raised after them, but for a
    database failure, which is raised at once.
    """
    done, failed, todo = 0, None, tasks_for(purpose)
    while todo:
        part = max(until - time.monotonic(), 0.0) / len(todo)
        try:
            done += todo.pop(0).take(TimeSlice(now, until=time.monotonic() + part)).done
        except Exception as error:
            if is_database_failure(error, connections[alias_of(Maintenance)]):
                raise
            failed = failed or error
    if failed is not None:
        raise failed
    return done
