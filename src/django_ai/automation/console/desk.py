"""The overview: what is broken, what was done, what is due, waits and is planned, who works, and what is paused, on one
page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import connections, models
from django.utils.translation import gettext

from ..db.database_clock import DatabaseNow
from ..db.writer import alias_of
from ..queues.lane_counts import LaneCount, LeasedRow, count_lanes, leased_rows
from ..queues.lanes import Lane, shown_name
from ..queues.models import HeldRow, Slot, SlotState, Worker
from ..queues.operations.health import Health, check_health
from ..queues.registry import due_times
from ..queues.worker_status import MAX_SILENCE
from ..workflows.models import Wait
from .activity import activity
from .chart import Chart, chart
from .kinds import Kinds, kinds
from .problems import Problem, problems
from .story import Tone, duration_text, moment_text

MAX_COUNTED_ROWS = 10_000
MAX_LEASES = 2_000
MAX_WORKERS = 50
MAX_SHOWN_LEASES = 5
SOON = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class DueLine:
    """The rows of one kind and queue that are due now."""

    kind: str
    queue: str
    count: str
    age: str


@dataclass(slots=True)
class WorkerLine:
    """A worker that is alive, or another process that performs rows, with those that it has leased now."""

    name: str
    pk: int | None
    queues: str = ""
    leases: list[LeasedRow] = field(default_factory=list)

    @property
    def shown(self) -> list[LeasedRow]:
        return self.leases[:MAX_SHOWN_LEASES]

    @property
    def rest(self) -> int:
        return max(len(self.leases) - MAX_SHOWN_LEASES, 0)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the overview shows."""

    tone: Tone
    summary: str
    workers: str
    chart: Chart
    due: list[DueLine]
    waiting: list[tuple[str, str]]
    planned: list[tuple[str, str]]
    paused: list[str]
    problems: list[Problem]
    broken: list[tuple[str, str]]
    working: list[WorkerLine]
    kinds: Kinds
    read_at: str


def desk(now: datetime, readable: Sequence[type[models.Model]] = ()) -> Desk:
    """Read the overview. The number of queries depends on the kinds only, and each reads a range of an index or the
    newest rows of a table; counts stop at ``MAX_COUNTED_ROWS``.

    ``readable``: the models whose rows the reader may view, for what names them.
    """
    times, broken = due_times(), problems()
    health = check_health(now, times=times)
    lanes = sorted(times, key=lambda lane: times[lane])
    counts = count_lanes(lanes, now, now + SOON, MAX_COUNTED_ROWS)
    return Desk(
        tone=Tone.BAD if not health.is_healthy else Tone.WAITING if broken or not health.workers else Tone.GOOD,
        summary=str(health),
        workers=_workers(health),
        chart=chart(activity(now)),
        due=[_due(each, now - times[each.lane]) for each in counts if times[each.lane] <= now],
        waiting=_waiting(counts),
        planned=_planned(counts),
        paused=list(health.paused),
        problems=broken,
        broken=_broken(broken),
        working=_working(lanes, now),
        kinds=kinds(readable),
        read_at=moment_text(now),
    )


def _workers(health: Health) -> str:
    seen = gettext("Workers that are alive: %s.") % health.workers
    if health.workers or health.last_seen_at is None:
        return seen
    return f"{seen} " + gettext("The last one was seen %s.") % moment_text(health.last_seen_at)


def _due(count: LaneCount, age: timedelta) -> DueLine:
    lane = count.lane
    return DueLine(_kind(lane), shown_name(lane.queue), _capped(count.due), duration_text(age))


def _kind(lane: Lane) -> str:
    return str(lane.model._meta.verbose_name_plural)


def _planned(counts: Sequence[LaneCount]) -> list[tuple[str, str]]:
    """Return how many rows of each kind become due in the next hour."""
    sums: dict[str, int] = {}
    for each in counts:
        sums[_kind(each.lane)] = sums.get(_kind(each.lane), 0) + each.soon
    return [(name, _capped(count)) for name, count in sums.items() if count]


def _waiting(counts: Sequence[LaneCount]) -> list[tuple[str, str]]:
    """Return what waits for something else than a worker, and for what."""
    connection = connections[alias_of(Wait)]
    quote = connection.ops.quote_name
    tables = [(Wait, "visit > 0"), (Slot, f"state = '{SlotState.QUEUED.value}'"), (HeldRow, "id > 0")]
    branches = [
        # The first rows of the table, and of those the ones that wait: none reads more than the limit.
        f"SELECT {number}, count(*) FROM "
        f"(SELECT * FROM {quote(model._meta.db_table)} ORDER BY id LIMIT {MAX_COUNTED_ROWS}) AS seen WHERE {condition}"
        for number, (model, condition) in enumerate(tables)
    ]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(branches))
        found = {number: int(count) for number, count in cursor.fetchall()}
    words = [
        (gettext("for a signal, an event or a child"), found[0]),
        (gettext("for their turn at a limit"), found[1]),
        (gettext("for the end of a pause"), found[2]),
        (gettext("for a time after the next hour"), sum(each.later for each in counts)),
    ]
    return [(name, _capped(count)) for name, count in words if count]


def _broken(found: Sequence[Problem]) -> list[tuple[str, str]]:
    """Return how many rows are parked and have failed."""
    lines = []
    for state, label in (("parked", gettext("Parked")), ("failed", gettext("Failed"))):
        mine = [each for each in found if each.state == state]
        count = sum(each.count for each in mine)
        lines.append((label, f"{count:,}+" if any(each.is_capped for each in mine) else f"{count:,}"))
    return lines


def _working(lanes: Sequence[Lane], now: datetime) -> list[WorkerLine]:
    """Return the workers that are alive with what they have leased, the busiest first."""
    alive = Worker.objects.filter(stopped_at=None, seen_at__gt=DatabaseNow() - MAX_SILENCE).order_by("-seen_at")
    lines = {str(each): WorkerLine(str(each), each.pk, each.queues) for each in alive[:MAX_WORKERS]}
    for row in leased_rows(lanes, now, MAX_LEASES):
        lines.setdefault(row.holder, WorkerLine(row.holder, None)).leases.append(row)
    return sorted(lines.values(), key=lambda each: (-len(each.leases), each.name))


def _capped(count: int) -> str:
    return f"{MAX_COUNTED_ROWS:,}+" if count >= MAX_COUNTED_ROWS else f"{count:,}"
