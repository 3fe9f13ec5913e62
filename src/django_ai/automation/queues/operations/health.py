"""Health: is work overdue while no worker makes progress with it?

``check_health`` answers a monitor's question with a few index look-ups, independent of the number of rows. Overdue work
alone is not unhealthy: a thousand runs may have started at once. It is unhealthy if no live worker performs rows of its
kind and queue, or if those that do make no progress. Workers are processes that are registered (``worker_status``); a
web process that performs what it has just committed makes no progress with other rows. A queue that hangs looks the
same from outside, for instance a Django-Q2 cluster after one of its idle workers was killed.

A worker that is busy with rows of another kind or queue makes no progress with this one. It counts as healthy for as
long as the longest step may take.

``registry.wakeables`` defines what counts as work. How long ago a worker was seen is computed from the database's
clock, so the clocks of machines may differ. Whether one process is alive is another question, which needs no database
(``liveness``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ...db.database_clock import DatabaseNow
from ...db.writer import alias_of
from ..due_query import count_due
from ..lanes import DEFAULT_QUEUE, Lane, declared_queues, shown_name
from ..maintenance import UnhealthyTask, unhealthy_tasks
from ..models import Worker
from ..pauses import current, described
from ..registry import due_times, longest_timeout, wakeables
from ..wakeable import at_text
from ..worker_status import MAX_SILENCE
from .explanations import kind_name

DEFAULT_TOLERANCE = timedelta(seconds=90)
"""Longer than the minute after which a cluster with a broker of Q2's own polls for timers."""
MAX_COUNTED_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that is alive. ``kinds``: what it performs (empty: all kinds). ``queues``: of which queues (empty: all);
    those after ``!`` are excluded. ``progress_ages``: for each kind and queue, how long ago it performed a row of
    it."""

    name: str
    kinds: frozenset[str]
    queues: frozenset[str]
    progress_ages: Mapping[str, timedelta]

    def performs(self, kind: str) -> bool:
        return not self.kinds or kind in self.kinds

    def polls(self, queue: str) -> bool:
        if f"!{queue}" in self.queues:
            return False
        return queue in self.queues or all(name.startswith("!") for name in self.queues)


@dataclass(frozen=True, slots=True)
class Overdue:
    """Overdue rows of one kind and queue.

    Attributes:
        kind: Name of the kind of row, such as "workflow run".
        worker_kind: The same kind, as in ``automation_worker --kinds``.
        queue: Name of the queue.
        count: Number of rows; it stops at ``MAX_COUNTED_ROWS``.
        since: When the first of them became due.
        workers: Number of live workers that perform such rows.
        makes_progress: Whether one of those workers makes progress.
    """

    kind: str
    worker_kind: str
    queue: str
    count: int
    since: datetime
    workers: int
    makes_progress: bool

    def __str__(self) -> str:
        plus = "+" if self.count == MAX_COUNTED_ROWS else ""
        place = "" if self.queue == DEFAULT_QUEUE else f" in the queue {self.queue!r}"
        text = f"{self.count}{plus} {self.kind}(s){place} since {at_text(self.since)}"
        if self.makes_progress:
            return text
        if not self.workers:
            return f"{text}, and no live worker polls {self.worker_kind!r}"
        return f"{text}, and no progress by {_counted(self.workers, 'live worker')}"


@dataclass(frozen=True, slots=True)
class Health:
    """The result of ``check_health``.

    Attributes:
        workers_by_kind: Number of live workers that perform each kind of row.
        workers_by_queue: Number of live workers that poll each queue.
        is_idle: Whether no row waits for a time or a worker.
        last_worker: The worker that was seen last, alive or not.
        maintenance: Periodic tasks that raise an error or are overdue. They count neither as work nor as progress.
        paused: What is paused, in words, except single rows. It is not overdue.
    """

    now: datetime
    tolerance: timedelta
    overdue: tuple[Overdue, ...]
    workers: int
    workers_by_kind: Mapping[str, int]
    workers_by_queue: Mapping[str, int]
    is_idle: bool
    last_worker: str
    last_seen_at: datetime | None
    last_worked_at: datetime | None
    maintenance: tuple[UnhealthyTask, ...] = ()
    paused: tuple[str, ...] = ()

    @property
    def is_healthy(self) -> bool:
        return all(each.makes_progress for each in self.overdue)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON values, with times in ISO 8601."""
        return {
            "healthy": self.is_healthy,
            "checked_at": self.now.isoformat(),
            "tolerance_seconds": self.tolerance.total_seconds(),
            "overdue": [
                {
                    "kind": each.kind,
                    "queue": each.queue,
                    "count": each.count,
                    "since": _iso(each.since),
                    "workers": each.workers,
                    "makes_progress": each.makes_progress,
                }
                for each in self.overdue
            ],
            "workers": self.workers,
            "workers_by_kind": dict(self.workers_by_kind),
            "workers_by_queue": dict(self.workers_by_queue),
            "last_worker": self.last_worker or None,
            "last_seen_at": _iso(self.last_seen_at),
            "last_worked_at": _iso(self.last_worked_at),
            "maintenance": [
                {"task": each.task, "due": _iso(each.since), "failures": each.failures, "error": each.error or None}
                for each in self.maintenance
            ],
            "paused": list(self.paused),
        }

    def __str__(self) -> str:
        overdue = "; ".join(map(str, self.overdue))
        if not self.is_healthy:
            text = f"NOT HEALTHY. Overdue: {overdue}. {self._workers_text}"
        elif self.overdue:
            text = f"Healthy but behind. Overdue: {overdue}. {self._workers_text}"
        elif self.workers or self.is_idle:
            text = f"Healthy: nothing is overdue. {self._workers_text}"
        else:
            text = f"{self._workers_text} Rows wait for one; nothing is overdue yet."
        if self.paused:
            text += f" Paused: {', '.join(self.paused)}."
        return f"{text} Maintenance: {'; '.join(map(str, self.maintenance))}." if self.maintenance else text

    @property
    def _workers_text(self) -> str:
        if self.workers:
            return f"{_counted(self.workers, 'worker')} {'is' if self.workers == 1 else 'are'} alive."
        if self.last_seen_at is None:
            return "No worker is alive, and none has ever reported."
        return f"No worker is alive; {self.last_worker} was seen last, {at_text(self.last_seen_at)}."


def check_health(
    now: datetime, tolerance: timedelta = DEFAULT_TOLERANCE, times: Mapping[Lane, datetime] | None = None
) -> Health:
    """Return whether work is overdue by more than ``tolerance``, and which workers are alive. Reads only.

    ``times``: what ``due_times()`` has returned to a caller that needs it, too.
    Raises the database's error if it cannot be queried.
    """
    alive = _alive()
    live_workers = [_live_worker(each) for each in alive]
    times = due_times() if times is None else times
    overdue = _overdue(times, now, tolerance, live_workers)
    last = alive[0] if alive else Worker.objects.using(alias_of(Worker)).order_by("-seen_at").first()
    return Health(
        now=now,
        tolerance=tolerance,
        overdue=tuple(overdue),
        workers=len(live_workers),
        workers_by_kind={
            model.kind: sum(worker.performs(model.kind) for worker in live_workers) for model in wakeables()
        },
        workers_by_queue={
            queue: sum(worker.polls(queue) for worker in live_workers)
            for queue in sorted({*declared_queues(), *(shown_name(lane.queue) for lane in times)})
        },
        is_idle=not times,
        last_worker=str(last) if last is not None else "",
        last_seen_at=last.seen_at if last is not None else None,
        last_worked_at=last.worked_at if last is not None else None,
        maintenance=tuple(unhealthy_tasks(now - tolerance)),
        paused=tuple(sorted(map(described, current().targets))),
    )


def _alive() -> list[Any]:
    """Return the workers that are alive, with the time of the query, the one that was seen last first."""
    workers = Worker.objects.using(alias_of(Worker)).filter(stopped_at=None, seen_at__gt=DatabaseNow() - MAX_SILENCE)
    return list(workers.annotate(asked_at=DatabaseNow()).order_by("-seen_at"))


def _live_worker(worker: Any) -> LiveWorker:
    unseen = worker.asked_at - worker.seen_at
    ages = {lane: unseen + timedelta(seconds=age) for lane, age in worker.worked.items()}
    kinds, queues = (frozenset(filter(None, names.split(","))) for names in (worker.kinds, worker.queues))
    return LiveWorker(worker.name, kinds, queues, ages)


def _overdue(
    times: Mapping[Lane, datetime], now: datetime, tolerance: timedelta, live_workers: Sequence[LiveWorker]
) -> list[Overdue]:
    """Return what is overdue, by kind and queue: a worker serves all priorities of a queue."""
    before = now - tolerance
    late: dict[Lane, list[Lane]] = {}
    for lane, wake_at in times.items():
        if wake_at <= before:
            late.setdefault(lane._replace(priority=0), []).append(lane)
    found = []
    for queue, lanes in late.items():
        since = min(times[lane] for lane in lanes)
        polling = [each for each in live_workers if each.performs(queue.model.kind)]
        workers = [each for each in polling if each.polls(shown_name(queue.queue))]
        ages = [age for worker in workers if (age := worker.progress_ages.get(queue.name)) is not None]
        if since > before - longest_timeout():
            # For this long a worker may be busy with a step of another kind or queue.
            ages += [age for worker in workers for age in worker.progress_ages.values()]
        found.append(
            Overdue(
                kind_name(queue.model),
                queue.model.kind,
                shown_name(queue.queue),
                min(sum(count_due(lane, before, MAX_COUNTED_ROWS) for lane in lanes), MAX_COUNTED_ROWS),
                since,
                len(workers),
                any(age <= tolerance for age in ages),
            )
        )
    return found


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
