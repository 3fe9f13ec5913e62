"""Health: is due work overdue while nobody makes progress, and what does each unfinished row wait for?

``examine`` is the question of a container's liveness probe: a few look-ups in indexes, however many rows there are.
Work that is overdue is no illness by itself (a thousand runs may have started at once); it is one when no worker has
performed anything for as long, and none has a row in hand. A queue that has wedged looks like that from outside, for
instance Django-Q2's cluster after an idle worker of it was killed.

``explain`` goes through every unfinished row and names the one thing that it waits for. A row without one would hang
for ever: there is none unless the engine has a bug.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import models

from ..conf import conf
from .lease import alias_of
from .maintenance import Trouble, troubles
from .models import Wakeable, Worker, at_text
from .registry import explained, wakeables
from .texts import one_line

OVERDUE = timedelta(seconds=90)
"""Longer than the minute after which a cluster without one of our brokers looks at its timers."""
COUNTED = 10_000
CHUNK = 500


@dataclass(frozen=True, slots=True)
class Overdue:
    """Rows of one kind that nobody has taken for too long. ``count`` stops at ``COUNTED``."""

    kind: str
    count: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """What ``examine`` found. ``in_hand``: rows that a worker has now, with a lease that it keeps alive.
    ``maintenance``: periodic tasks that raise or that nobody takes, which are neither work nor progress."""

    now: datetime
    tolerance: timedelta
    overdue: tuple[Overdue, ...]
    in_hand: int
    last_worker: str
    last_worked_at: datetime | None
    maintenance: tuple[Trouble, ...] = ()

    @property
    def makes_progress(self) -> bool:
        """Whether some worker performed a row within the tolerance, or has one in hand."""
        recently = self.last_worked_at is not None and self.now - self.last_worked_at <= self.tolerance
        return recently or self.in_hand > 0

    @property
    def is_healthy(self) -> bool:
        return not self.overdue or self.makes_progress

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; moments in ISO 8601."""
        return {
            "healthy": self.is_healthy,
            "checked_at": self.now.isoformat(),
            "tolerance_seconds": self.tolerance.total_seconds(),
            "overdue": [{"kind": each.kind, "count": each.count, "since": _iso(each.since)} for each in self.overdue],
            "in_hand": self.in_hand,
            "last_worker": self.last_worker or None,
            "last_worked_at": _iso(self.last_worked_at),
            "maintenance": [
                {"task": each.task, "due": _iso(each.since), "failures": each.failures, "error": each.error or None}
                for each in self.maintenance
            ],
        }

    def __str__(self) -> str:
        if self.last_worked_at is None:
            last = "No worker has ever reported."
        else:
            last = f"{self.last_worker} worked last, {at_text(self.last_worked_at)}."
        if self.maintenance:
            last = f"{last} Maintenance: {'; '.join(map(str, self.maintenance))}."
        hand = f" {self.in_hand} in hand." if self.in_hand else ""
        if not self.overdue:
            return f"Healthy: nothing is overdue.{hand} {last}"
        late = ", ".join(
            f"{each.count}{'+' if each.count == COUNTED else ''} {each.kind}(s) since {at_text(each.since)}"
            for each in self.overdue
        )
        state = "Healthy but behind" if self.is_healthy else "NOT HEALTHY, nobody makes progress"
        return f"{state}. Overdue: {late}.{hand} {last}"


def examine(now: datetime, tolerance: timedelta = OVERDUE) -> Health:
    """Look whether work is overdue by more than ``tolerance``, and who worked last. Reads only.

    Raises what the database raises when it cannot be asked.
    """
    last = Worker.objects.using(alias_of(Worker)).order_by("-worked_at").first()
    late = [found for model in wakeables() if (found := _overdue(model, now - tolerance)) is not None]
    # A lease that is kept alive ends soon: what is further ahead are timers, perhaps millions of them.
    soon = {"wake_at__gt": now, "wake_at__lte": now + 2 * conf().LEASE}
    in_hand = sum(_count(model, **soon, lease__isnull=False) for model in wakeables())
    return Health(
        now=now,
        tolerance=tolerance,
        overdue=tuple(late),
        in_hand=in_hand,
        last_worker=str(last) if last is not None else "",
        last_worked_at=last.worked_at if last is not None else None,
        maintenance=tuple(troubles(now - tolerance)),
    )


def _overdue(model: type[Wakeable], before: datetime) -> Overdue | None:
    since = model._base_manager.using(alias_of(model)).filter(wake_at__lte=before).order_by("wake_at").first()
    if since is None or since.wake_at is None:
        return None
    return Overdue(kind_of(model), _count(model, wake_at__lte=before), since.wake_at)


def _count(model: type[Wakeable], **lookups: Any) -> int:
    return len(model._base_manager.using(alias_of(model)).filter(**lookups).values_list("pk")[:COUNTED])


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
