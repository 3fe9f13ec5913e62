"""Health: is work overdue while no worker makes progress, what has failed, and what does each unfinished row wait for?

``examine`` is the question of a monitor: a few look-ups in indexes, however many rows there are. Work that is overdue
is no illness by itself (a thousand runs may have started at once); it is one when no living worker looks at its queue,
or when those that do make no progress with it. Workers are processes that have enlisted (``presence``): a web process
that performs what it has committed makes no progress with what others wait for. A queue that has wedged looks like that
from outside, for instance Django-Q2's cluster after an idle worker of it was killed.

A worker that is busy with rows of another queue makes no progress with this one, and may have good reason: it has
that reason for as long as one step may take.

What is work is what ``registry.wakeables`` says. How long ago a worker was seen the database says, so that machines may
differ about the time. Whether one process is alive is another question, which needs no database (``pulse``).

``explain`` goes through every unfinished row and names the one thing that it waits for. A row without one would hang
for ever: there is none unless the engine has a bug.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import models

from ...db.writer import alias_of
from ...values.text import one_line
from ..maintenance import Trouble, unhealthy_tasks
from ..models import DatabaseNow, Wakeable, Worker, at_text
from ..registry import due_times, explained, longest_timeout, wakeables
from ..worker_status import DEAD_AFTER
from .resume import Kind, kinds

OVERDUE = timedelta(seconds=90)
"""Longer than the minute after which a cluster without one of our brokers looks at its timers."""
COUNTED = 10_000
CHUNK = 500


@dataclass(frozen=True, slots=True)
class Living:
    """A worker that is alive. ``worked``: for each queue how long ago it made progress with it."""

    name: str
    queues: frozenset[str]
    worked: Mapping[str, timedelta]

    def looks_at(self, queue: str) -> bool:
        return not self.queues or queue in self.queues


@dataclass(frozen=True, slots=True)
class Overdue:
    """Rows of one kind that nobody has taken for too long. ``count`` stops at ``COUNTED``. ``workers``: how many living
    workers look at them; ``moves``: whether one of those makes progress."""

    kind: str
    queue: str
    count: int
    since: datetime
    workers: int
    moves: bool

    def __str__(self) -> str:
        text = f"{self.count}{'+' if self.count == COUNTED else ''} {self.kind}(s) since {at_text(self.since)}"
        if self.moves:
            return text
        if not self.workers:
            return f"{text}, and no living worker looks at {self.queue!r}"
        return f"{text}, and no progress by {_counted(self.workers, 'living worker')}"


@dataclass(frozen=True, slots=True)
class Health:
    """What ``examine`` found. ``living``: how many living workers look at each queue. ``is_idle``: no row waits for a
    time or a worker. ``last_worker``: the one that was seen last, alive or not. ``maintenance``: periodic tasks that
    raise or that nobody takes, which are neither work nor progress."""

    now: datetime
    tolerance: timedelta
    overdue: tuple[Overdue, ...]
    workers: int
    living: Mapping[str, int]
    is_idle: bool
    last_worker: str
    last_seen_at: datetime | None
    last_worked_at: datetime | None
    maintenance: tuple[Trouble, ...] = ()

    @property
    def is_healthy(self) -> bool:
        return all(each.moves for each in self.overdue)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; moments in ISO 8601."""
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
                    "makes_progress": each.moves,
                }
                for each in self.overdue
            ],
            "workers": self.workers,
            "workers_by_queue": dict(self.living),
            "last_worker": self.last_worker or None,
            "last_seen_at": _iso(self.last_seen_at),
            "last_worked_at": _iso(self.last_worked_at),
            "maintenance": [
                {"task": each.task, "due": _iso(each.since), "failures": each.failures, "error": each.error or None}
                for each in self.maintenance
            ],
        }

    def __str__(self) -> str:
        late = "; ".join(map(str, self.overdue))
        if not self.is_healthy:
            text = f"NOT HEALTHY. Overdue: {late}. {self._who}"
        elif self.overdue:
            text = f"Healthy but behind. Overdue: {late}. {self._who}"
        elif self.workers or self.is_idle:
            text = f"Healthy: nothing is overdue. {self._who}"
        else:
            text = f"{self._who} Rows wait for one; nothing is overdue yet."
        return f"{text} Maintenance: {'; '.join(map(str, self.maintenance))}." if self.maintenance else text

    @property
    def _who(self) -> str:
        if self.workers:
            return f"{_counted(self.workers, 'worker')} {'is' if self.workers == 1 else 'are'} alive."
        if self.last_seen_at is None:
            return "No worker is alive, and none has ever reported."
        return f"No worker is alive; {self.last_worker} was seen last, {at_text(self.last_seen_at)}."


def examine(now: datetime, tolerance: timedelta = OVERDUE) -> Health:
    """Look whether work is overdue by more than ``tolerance``, and who works. Reads only.

    Raises what the database raises when it cannot be asked.
    """
    living = _living()
    late = [found for model in wakeables() if (found := _overdue(model, now, tolerance, living)) is not None]
    last = Worker.objects.using(alias_of(Worker)).order_by("-seen_at").first()
    return Health(
        now=now,
        tolerance=tolerance,
        overdue=tuple(late),
        workers=len(living),
        living={model.queue: sum(each.looks_at(model.queue) for each in living) for model in wakeables()},
        is_idle=not due_times(),
        last_worker=str(last) if last is not None else "",
        last_seen_at=last.seen_at if last is not None else None,
        last_worked_at=last.worked_at if last is not None else None,
        maintenance=tuple(unhealthy_tasks(now - tolerance)),
    )


def _living() -> list[Living]:
    found = []
    workers = Worker.objects.using(alias_of(Worker)).filter(stopped_at=None, seen_at__gt=DatabaseNow() - DEAD_AFTER)
    for worker in workers.annotate(asked_at=DatabaseNow()):
        unseen = worker.asked_at - worker.seen_at
        worked = {queue: unseen + timedelta(seconds=age) for queue, age in worker.worked.items()}
        found.append(Living(worker.name, frozenset(filter(None, worker.queues.split(","))), worked))
    return found


def _overdue(model: type[Wakeable], now: datetime, tolerance: timedelta, living: Sequence[Living]) -> Overdue | None:
    before = now - tolerance
    rows = model._base_manager.using(alias_of(model)).filter(wake_at__lte=before)
    since = rows.order_by("wake_at").values_list("wake_at", flat=True).first()
    if since is None:
        return None
    looking = [each for each in living if each.looks_at(model.queue)]
    ages = [age for each in looking if (age := each.worked.get(model.queue)) is not None]
    if since > before - longest_timeout():
        ages += [age for each in looking for age in each.worked.values()]  # busy with others, and for a while it may be
    count = rows.values("pk")[:COUNTED].count()
    return Overdue(kind_of(model), model.queue, count, since, len(looking), any(age <= tolerance for age in ages))


@dataclass(frozen=True, slots=True)
class FailedAndParked:
    """How many rows have failed for good, and how many are parked: of each kind that has some. A count stops one above
    ``limit``."""

    failed: Mapping[str, int]
    parked: Mapping[str, int]
    limit: int = field(default=COUNTED)

    def as_dict(self) -> dict[str, Any]:
        return {"failed": dict(self.failed), "parked": dict(self.parked)}

    def __str__(self) -> str:
        return f"Failed: {self._said(self.failed)}. Parked: {self._said(self.parked)}."

    def _said(self, found: Mapping[str, int]) -> str:
        texts = [
            f"more than {self.limit} {kind}(s)" if count > self.limit else f"{count} {kind}(s)"
            for kind, count in found.items()
        ]
        return ", ".join(texts) or "none"


def count_failed_and_parked(limit: int = COUNTED) -> FailedAndParked:
    """Count what has failed and what is parked, as ``automation_resume --failed`` would list it: from indexes that hold
    little else. Reads only."""
    failed: dict[str, int] = {}
    parked: dict[str, int] = {}
    for kind in kinds().values():
        for found, rows in ((failed, failed_of(kind)), (parked, parked_of(kind))):
            if rows is not None and (count := rows[: limit + 1].count()):
                found[kind_of(kind.model)] = count
    return FailedAndParked(failed, parked, limit)


def failed_of(kind: Kind) -> models.QuerySet[Any] | None:
    """Return the keys of what has failed of a kind that can."""
    return None if kind.failed is None else _keys(kind, kind.failed)


def parked_of(kind: Kind) -> models.QuerySet[Any]:
    """Return the keys of what is parked of a kind."""
    return _keys(kind, kind.parked & models.Q(parked_at__isnull=False))  # always so; MariaDB needs it for its index


def _keys(kind: Kind, condition: models.Q) -> models.QuerySet[Any]:
    return kind.model._base_manager.using(alias_of(kind.model)).filter(condition).order_by().values("pk")


def kind_of(model: type[models.Model]) -> str:
    """Return what a person calls rows of ``model``."""
    return str(model._meta.verbose_name)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One unfinished row, and the one thing that it waits for; empty: there is none."""

    kind: str
    pk: Any
    row: str
    status: str
    waits_for: str

    def __str__(self) -> str:
        status = f" ({self.status})" if self.status else ""
        return one_line(f"{self.kind} {self.pk}: {self.row}{status} waits for {self.waits_for or 'NOTHING: it hangs'}")


def explain(now: datetime, kinds: Sequence[str] = ()) -> Iterator[Explanation]:
    """Yield every unfinished row with what it waits for, a few hundred read at a time. ``kinds``: only these (default:
    all). Reads only."""
    for model in explained():
        kind = kind_of(model)
        if kinds and kind not in kinds:
            continue
        for row in _in_chunks(model.unfinished().using(alias_of(model))):
            yield Explanation(kind, row.pk, str(row), str(getattr(row, "status", "")), row.waits_for(now))


def known_kinds() -> list[str]:
    return [kind_of(model) for model in explained()]


def _in_chunks(rows: models.QuerySet[Any]) -> Iterator[Any]:
    """Yield ``rows`` by their keys: no cursor stays open on the server, which a pooler may not allow."""
    last = None
    while chunk := list((rows if last is None else rows.filter(pk__gt=last)).order_by("pk")[:CHUNK]):
        yield from chunk
        last = chunk[-1].pk


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
