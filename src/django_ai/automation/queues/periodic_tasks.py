"""Periodic tasks: what the engine does again and again, in time slices.

A layer registers its tasks in ``ready()``: *reconcilers* find what changed behind Django's back, *pruners* remove old
rows. A task gets a ``TimeSlice``, works until it is over, and returns where it stopped. ``maintenance`` performs the
tasks in workers; ``run_all`` performs them immediately, in the foreground.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connections

from ..db.errors import is_database_failure
from ..db.writer import alias_of
from .models import Maintenance

RECONCILE = "reconcile"
PRUNE = "prune"


@dataclass(frozen=True, slots=True)
class TimeSlice:
    """What a task gets: the moment, the ``position`` at which its last slice stopped (None: start from the beginning),
    and the end of the slice (of ``time.monotonic``). A task does at least one unit of work in each slice."""

    now: datetime
    position: Any = None
    until: float = float("inf")

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until


@dataclass(frozen=True, slots=True)
class SliceResult:
    """The result of a time slice. ``done``: how many rows were removed or corrected. ``position``: where the next slice
    continues (JSON; None: the task is complete). ``pause``: how long at least the task has nothing to do then."""

    done: int = 0
    position: Any = None
    pause: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A periodic task. ``purpose``: ``RECONCILE`` or ``PRUNE``. ``interval``: how long after its end it starts
    again."""

    name: str
    purpose: str
    run_slice: Callable[[TimeSlice], SliceResult]
    interval: timedelta


_tasks: dict[str, PeriodicTask] = {}


def register(name: str, purpose: str, run_slice: Callable[[TimeSlice], SliceResult], interval: timedelta) -> None:
    """Let workers call ``run_slice`` until the task is complete, and again ``interval`` after that."""
    _tasks[name] = PeriodicTask(name, purpose, run_slice, interval)


def register_reconciler(name: str, reconcile: Callable[[TimeSlice], SliceResult]) -> None:
    """Let workers (every five minutes) and ``poll_due`` call ``reconcile``; it counts the rows that it corrected."""
    register(name, RECONCILE, reconcile, timedelta(minutes=5))


def register_pruner(
    name: str, prune: Callable[[TimeSlice], SliceResult], interval: timedelta = timedelta(minutes=1)
) -> None:
    """Let workers (every minute) and ``cleanup_old`` call ``prune``; it counts the rows that it removed."""
    register(name, PRUNE, prune, interval)


def task_names() -> list[str]:
    return list(_tasks)


def find_task(name: str) -> PeriodicTask | None:
    return _tasks.get(name)


def tasks_for(purpose: str) -> list[PeriodicTask]:
    return [task for task in _tasks.values() if task.purpose == purpose]


def run_all(purpose: str, now: datetime, until: float = float("inf")) -> int:
    """Run the tasks for ``purpose`` immediately, regardless of their rows. Return how many rows were removed or
    corrected.

    ``until``: stop at this moment (of ``time.monotonic``). The remaining time is divided among the remaining tasks, so
    that no task uses up all of it. A task that raises does not stop the others: its error is raised after them. A
    database failure is raised immediately.
    """
    done, failure, remaining = 0, None, tasks_for(purpose)
    while remaining:
        share = max(until - time.monotonic(), 0.0) / len(remaining)
        try:
            done += remaining.pop(0).run_slice(TimeSlice(now, until=time.monotonic() + share)).done
        except Exception as error:
            if is_database_failure(error, connections[alias_of(Maintenance)]):
                raise
            failure = failure or error
    if failure is not None:
        raise failure
    return done
