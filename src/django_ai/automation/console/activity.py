"""What was done in the last day: how many rows have completed, failed and started late, minute by minute.

The rows are grouped by the database, in one query for each kind. Each reads the newest entries of one index, at most
``MAX_ROWS``; where there are more, the picture begins later, and says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections, models
from django.db.models import Case, F, Func, IntegerField, Q, Value, When

from ..agents.models import HandlerExecution
from ..db.writer import alias_of
from ..events.models import CallbackExecution
from ..workflows.definitions import newest_workflows
from ..workflows.models import WorkflowRun

PERIOD = timedelta(hours=24)
LATE = timedelta(minutes=1)
"""A row that starts so much after it became due is late."""
MAX_ROWS = 50_000
"""Rows of each kind that are counted, the newest ones."""


@dataclass(slots=True)
class Counts:
    """What has ended in a minute, or in another period. ``late``: those of them that had started late."""

    done: int = 0
    failed: int = 0
    late: int = 0

    def add(self, other: Counts) -> None:
        self.done += other.done
        self.failed += other.failed
        self.late += other.late


@dataclass(slots=True)
class Activity:
    """The minutes of a period in which something has ended. ``since``: from when on everything was counted."""

    since: datetime
    until: datetime
    minutes: dict[datetime, Counts] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def total(self) -> Counts:
        total = Counts()
        for each in self.minutes.values():
            total.add(each)
        return total

    def by_hour(self) -> list[tuple[datetime, Counts]]:
        """Return the sums of the hours of the clock, the newest first, with those in which nothing has ended."""
        found: dict[datetime, Counts] = defaultdict(Counts)
        for minute, counts in self.minutes.items():
            found[minute.replace(minute=0)].add(counts)
        first, hour = _minute(self.since).replace(minute=0), _minute(self.until).replace(minute=0)
        hours = []
        while hour >= first:
            hours.append((hour, found.get(hour, Counts())))
            hour -= timedelta(hours=1)
        return hours


@dataclass(frozen=True, slots=True)
class _Source:
    """The rows of one kind that have ended. ``late``: which of them had started late."""

    model: type[models.Model]
    failed: str
    done: str
    late: Q


class _Minute(Func):
    """The minute of a moment: its number since 1970, or a string of UTC."""

    template = "substr(%(expressions)s, 1, 16)"
    output_field = models.CharField()

    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        return super().as_sql(compiler, connection, template="trunc(date_part('epoch', %(expressions)s) / 60)::bigint")

    def as_mysql(self, compiler: Any, connection: Any) -> Any:
        return super().as_sql(compiler, connection, template="CAST(%(expressions)s AS CHAR(16))")


def activity(now: datetime) -> Activity:
    """Read what has ended in the last day, with one query."""
    found = Activity(now - PERIOD, now)
    sources = _sources()
    grouped = _grouped(sources, found.since)
    summed: dict[int | str, Counts] = {}
    for number in range(len(sources)):
        minutes = grouped[number]
        if sum(count for _, count, *_ in minutes) >= MAX_ROWS:
            # The oldest minute was not read to its end.
            found.is_cut = True
            found.since = max(found.since, _moment(min(minute for minute, *_ in minutes)) + timedelta(minutes=1))
        for minute, _, *sums in minutes:
            summed.setdefault(minute, Counts()).add(Counts(*map(int, sums)))
    first = _minute(found.since)
    found.minutes = {minute: counts for key, counts in summed.items() if (minute := _moment(key)) >= first}
    return found


def _sources() -> Sequence[_Source]:
    late = Q(started_at__gt=F("created_at") + Value(LATE, output_field=models.DurationField()))
    due_late = Q(started_at__gt=F("due_at") + Value(LATE, output_field=models.DurationField()))
    collecting = [each.name for each in newest_workflows() if each.window is not None]
    # A planned run is created before it is due, and one of a window waits for its end.
    runs = late & Q(planned=False) & (~Q(name__in=collecting) if collecting else Q())
    return (
        _Source(WorkflowRun, "failed", "completed", runs),
        _Source(CallbackExecution, "failed", "completed", late),
        _Source(HandlerExecution, "failed", "completed", due_late),
    )


def _grouped(sources: Sequence[_Source], since: datetime) -> dict[int, list[Sequence[Any]]]:
    """Return (minute, number of rows, done, failed, late) for each kind, by its number."""
    alias = alias_of(sources[0].model)
    branches, params = [], list[Any]()
    for number, source in enumerate(sources):
        sql, given = _ended(source, since, alias)
        done, failed = (f"SUM(CASE WHEN status = '{each}' THEN 1 ELSE 0 END)" for each in (source.done, source.failed))
        branches.append(
            f"SELECT {number}, ended_minute, count(*), {done}, {failed}, SUM(was_late) FROM ({sql}) AS ended "
            "GROUP BY ended_minute"
        )
        params += given
    found: dict[int, list[Sequence[Any]]] = defaultdict(list)
    with connections[alias].cursor() as cursor:
        cursor.execute(" UNION ALL ".join(branches), params)
        for number, *line in cursor.fetchall():
            found[number].append(line)
    return found


def _ended(source: _Source, since: datetime, alias: str) -> tuple[str, Sequence[Any]]:
    """Return the query for the rows of one kind that have ended, and its parameters."""
    is_late = Case(When(source.late, then=Value(1)), default=Value(0), output_field=IntegerField())
    rows = (
        source.model._base_manager.using(alias)
        .filter(finished_at__gte=since, finished_at__isnull=False)
        .annotate(ended_minute=_Minute("finished_at"), was_late=is_late)
        .order_by("-finished_at")
        .values_list("ended_minute", "status", "was_late")[:MAX_ROWS]
    )
    sql, params = rows.query.get_compiler(using=alias).as_sql()
    return str(sql), params


def _moment(minute: int | str) -> datetime:
    if isinstance(minute, int):
        return datetime.fromtimestamp(60 * minute, UTC)
    return datetime.strptime(minute[:16], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


def _minute(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(second=0, microsecond=0)
