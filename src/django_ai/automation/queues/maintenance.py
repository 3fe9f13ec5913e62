"""Maintenance: workers perform the periodic tasks of the engine, as rows like any other work.

Each periodic task (``periodic_tasks``) has one row of ``Maintenance``. ``drain`` claims and performs it like a run or
an event, so only one of N workers has it at a time; if that worker dies, the lease runs out and another one continues.
Maintenance does not delay work:

* a worker performs a task in time slices of ``SLICE_SECONDS``: the task returns where it stopped (``position``), and
  the row is due again immediately;
* work that is due comes first. Only a row that has waited for ``MAX_WAIT`` gets one slice between two rounds of work,
  so that an endless backlog does not stop maintenance;
* each task has its own row, time and error: one that raises is retried with an exponential backoff, and the others
  continue.

The rows follow the code without a migration (``ensure_rows``).
"""

from __future__ import annotations

import json
import logging
import time
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
from .advance import advance
from .held_leases import bounded, disarm_deadline, keep_lease_for
from .models import Maintenance
from .periodic_tasks import RECONCILE, TimeSlice, find_task, task_names, tasks_for
from .wakeable import at_text

logger = logging.getLogger("django_ai.automation")

SLICE_SECONDS = 0.3
"""How long one time slice of a task takes, about."""
MAX_WAIT = timedelta(seconds=3)
"""How long a row of maintenance waits at most while other work is always due."""
MIN_BACKOFF = timedelta(seconds=10)
MAX_BACKOFF = timedelta(hours=1)
ROW_CHECK_SECONDS = 60.0
"""How often a process checks that each task has its row."""


# -- the rows ----------------------------------------------------------------------------------------------------------

_next_row_check: dict[tuple[str, str], float] = {}


def ensure_rows(now: datetime) -> None:
    """Ensure that each task has its row. Costs one query per ``ROW_CHECK_SECONDS``."""
    connection = connections[alias_of(Maintenance)]
    key = (connection.alias, str(connection.settings_dict["NAME"]))
    if time.monotonic() < _next_row_check.get(key, 0.0):
        return
    known = set(Maintenance.objects.values_list("name", flat=True))
    missing = [Maintenance(name=name, wake_at=now) for name in task_names() if name not in known]
    insert_ignoring(Maintenance, missing)
    if not connection.in_atomic_block:  # a transaction may be rolled back
        _next_row_check[key] = time.monotonic() + ROW_CHECK_SECONDS


def run_soon(purpose: str, now: datetime) -> int:
    """Make the tasks for ``purpose`` due now, before the end of their interval. Return how many were not due. A task
    that has failed keeps its time."""
    names = [task.name for task in tasks_for(purpose)]
    waiting = Maintenance.objects.filter(name__in=names, lease=None, wake_at__gt=now, failures=0)
    return waiting.update(wake_at=now)


def on_timekeeper_start(now: datetime) -> None:
    """Ensure the rows and reconcile soon. Each process that keeps time for workers calls it once: it may run new
    code."""
    _next_row_check.clear()
    ensure_rows(now)
    run_soon(RECONCILE, now)


# -- a worker's path for one row ---------------------------------------------------------------------------------------


def perform(row: Maintenance, clock: Clock) -> None:
    """Run one time slice, and write where it stopped. Raises ``LeaseLostError`` and database failures."""
    task = find_task(row.name)
    if task is None:
        # A task of another release. If that release still runs, it inserts the row again.
        Maintenance.objects.filter(pk=row.pk, lease=row.lease, seq=row.seq).delete()
        return
    connection = connections[alias_of(Maintenance)]
    timeout = conf().STEP_TIMEOUT
    keep_lease_for(timeout)
    try:
        try:
            with bounded(timeout, connection):  # a reconciler calls conditions of the project
                result = task.run_slice(TimeSlice(clock(), row.position, time.monotonic() + SLICE_SECONDS))
                position = None if result.position is None else json.dumps(result.position)
        finally:
            disarm_deadline()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        if is_database_failure(error, connection):
            raise
        close_if_broken(connection)
        logger.exception("%s failed and will be retried later; the other tasks continue.", row)
        postpone(row, trace_of(error), clock())
        return
    is_complete = position is None
    now = clock()
    changes: dict[str, Any] = {
        "lease": None,
        "wake_at": now + max(task.interval, result.pause) if is_complete else now,
        "position": position,
        "done": row.done + result.done,
        "failures": 0,
        "error": "",
    }
    advance(row, changes | {"completed_at": now} if is_complete else changes)


def postpone(row: Maintenance, reason: str, now: datetime, *, awaiting_deploy: bool = False) -> None:
    """Write why a task failed, and let it start from the beginning after a backoff. A task is never parked, because no
    other task does its work. Fenced; raises ``LeaseLostError``."""
    backoff = min(MIN_BACKOFF * 2 ** min(row.failures, 16), MAX_BACKOFF)
    changes: dict[str, Any] = {
        "lease": None,
        "wake_at": now + backoff,
        "position": None,  # the position itself may be what cannot be read
        "failures": min(row.failures + 1, 1000),
        "error": storable(reason),
    }
    advance(row, changes)


# -- for an operator ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnhealthyTask:
    """A task that raises, or that no worker has performed for too long. ``since``: when it was due, or is retried;
    ``error``: the last line of its error."""

    task: str
    since: datetime
    failures: int
    error: str

    def __str__(self) -> str:
        if self.failures:
            return f"{self.task!r} failed {self.failures} time(s), next attempt {at_text(self.since)}: {self.error}"
        return f"{self.task!r} has been due since {at_text(self.since)}"


def unhealthy_tasks(before: datetime) -> list[UnhealthyTask]:
    """Return the tasks that raised, and those that have been due since ``before``. Reads only."""
    rows = Maintenance.objects.filter(Q(failures__gt=0) | Q(wake_at__lte=before)).order_by("name")
    return [UnhealthyTask(row.name, row.wake_at, row.failures, last_line(row.error)) for row in rows if row.wake_at]
