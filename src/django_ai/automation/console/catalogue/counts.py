"""How many rows there are of what the code declares: unfinished, done in the last 24 hours, failed or parked.

A table may have a million rows, and there is no index from a name to the unfinished ones. So rows are read from the
newest on, up to a limit, and grouped by the database: of each workflow by its index, of other kinds in the whole table.
A count that the limit has cut is a lower bound (``+``). Failed and parked rows have indexes of their own. The number of
queries depends on the kinds, not on the rows or the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connections, models

from ...agents.models import FINISHED as ENDED_AGENTS
from ...agents.models import AgentRun, AgentStatus
from ...db.writer import alias_of
from ...events.models import CallbackExecution, Event, EventStatus, ExecutionStatus, Schedule
from ...queues.wakeable import newest_parked
from ...workflows.models import WorkflowRun
from ...workflows.statuses import FINISHED as ENDED_RUNS
from ...workflows.statuses import WorkflowStatus
from .entries import AGENT, CALLBACK, EVENT, SCHEDULE, WORKFLOW, CatalogueEntry

DAY = timedelta(days=1)
MAX_OF_TABLE = 20_000
MAX_OF_NAME = 2_000
MAX_BROKEN = 2_000


@dataclass(slots=True)
class Counts:
    """The counts of one entry. ``is_bound``: there are older rows that were not read, so they are lower bounds."""

    live: int = 0
    done: int = 0
    broken: int = 0
    is_bound: bool = False
    is_broken_bound: bool = False
    next_at: datetime | None = None
    """Of a schedule: when it is due."""

    @property
    def live_text(self) -> str:
        return _text(self.live, is_bound=self.is_bound)

    @property
    def done_text(self) -> str:
        return _text(self.done, is_bound=self.is_bound)

    @property
    def broken_text(self) -> str:
        return _text(self.broken, is_bound=self.is_broken_bound)


def _text(count: int, *, is_bound: bool) -> str:
    return f"{count:,}+" if is_bound else f"{count:,}"


@dataclass(frozen=True, slots=True)
class _Table:
    model: Any
    name: str
    ended: tuple[str, ...]
    done: str
    done_at: str
    has_failed: bool = True


TABLES = {
    WORKFLOW: _Table(WorkflowRun, "name", tuple(ENDED_RUNS), WorkflowStatus.COMPLETED, "finished_at"),
    AGENT: _Table(AgentRun, "name", tuple(ENDED_AGENTS), AgentStatus.COMPLETED, "finished_at"),
    CALLBACK: _Table(
        CallbackExecution,
        "callback",
        (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED),
        ExecutionStatus.COMPLETED,
        "finished_at",
    ),
    EVENT: _Table(
        Event,
        "declared_as",
        (EventStatus.PROCESSED, EventStatus.CANCELLED, EventStatus.EXPIRED),
        EventStatus.PROCESSED,
        "occurred_at",
        has_failed=False,
    ),
}


@dataclass(slots=True)
class _Group:
    name: str
    status: str
    count: int
    recent: int


@dataclass(slots=True)
class _Found:
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)

    def of(self, kind: str, name: str) -> Counts:
        return self.counts.setdefault((kind, name), Counts())


def count_rows(entries: Sequence[CatalogueEntry], now: datetime) -> dict[tuple[str, str], Counts]:
    """Return the counts of ``entries``, by their kind and name. At most nine queries, whatever their number."""
    found = _Found()
    wanted = {kind: {each.name for each in entries if each.kind == kind} for kind in TABLES}
    for each in entries:
        if each.kind == SCHEDULE:
            wanted[each.target_kind].add(each.target)
    for kind, names in wanted.items():
        if names:
            _count(found, kind, names, now - DAY)
    _add_schedules(found, [each for each in entries if each.kind == SCHEDULE])
    return found.counts


def _count(found: _Found, kind: str, names: Collection[str], since: datetime) -> None:
    table = TABLES[kind]
    groups = list(_of_names(table, names, since) if kind == WORKFLOW else _of_table(table, since))
    read = Counter[str]()
    for group in groups:
        read[group.name] += group.count
        if group.name not in names:
            continue
        counts = found.of(kind, group.name)
        counts.live += 0 if group.status in table.ended else group.count
        counts.done += group.recent
    cut = set(names) if kind != WORKFLOW and read.total() >= MAX_OF_TABLE else set[str]()
    if kind == WORKFLOW:
        cut = {name for name in names if read[name] >= MAX_OF_NAME}
    for name in names:
        found.of(kind, name).is_bound = name in cut
    broken, is_cut = _broken(table, since)
    for name in names:
        counts = found.of(kind, name)
        counts.broken, counts.is_broken_bound = broken[name], is_cut


def _of_table(table: _Table, since: datetime) -> Iterator[_Group]:
    """Yield the newest rows of a table, grouped by name and status."""
    rows = table.model._default_manager.using(alias_of(table.model)).order_by("-pk")
    newest = rows.values(table.name, "status", table.done_at)[:MAX_OF_TABLE]
    yield from _grouped(table, [newest], since)


def _of_names(table: _Table, names: Collection[str], since: datetime) -> Iterator[_Group]:
    """Yield the newest rows of each name, grouped by status. Each is read by the index of name and time."""
    rows = table.model._default_manager.using(alias_of(table.model))
    newest = [
        rows.filter(**{table.name: name})
        .order_by("-created_at")
        .values(table.name, "status", table.done_at)[:MAX_OF_NAME]
        for name in sorted(names)
    ]
    yield from _grouped(table, newest, since)


def _grouped(table: _Table, newest: Sequence[models.QuerySet[Any]], since: datetime) -> Iterator[_Group]:
    """Yield the groups of several querysets, with one statement. Django groups before it limits, so the limited
    querysets are its derived tables."""
    alias = alias_of(table.model)
    connection = connections[alias]
    quote = connection.ops.quote_name
    name, at = quote(table.name), quote(table.done_at)
    given = connection.ops.adapt_datetimefield_value(since)
    parts, params = [], list[Any]()
    for each in newest:
        sql, inner = each.query.get_compiler(using=alias).as_sql()
        recent = f"SUM(CASE WHEN status = %s AND {at} >= %s THEN 1 ELSE 0 END)"
        parts.append(f"SELECT {name}, status, COUNT(*), {recent} FROM ({sql}) newest GROUP BY {name}, status")
        params += [str(table.done), given, *inner]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts), params)
        for row in cursor.fetchall():
            yield _Group(str(row[0]), str(row[1]), int(row[2]), int(row[3] or 0))


def _broken(table: _Table, since: datetime) -> tuple[Counter[str], bool]:
    """Return how many rows of each name have failed or are parked, and whether there are more than were read."""
    rows = table.model._default_manager.using(alias_of(table.model))
    found = [newest_parked(rows)]
    if table.has_failed:
        found.append(rows.filter(status="failed").order_by("-finished_at"))
    newest = [each.values(table.name, "status", table.done_at)[:MAX_BROKEN] for each in found]
    counts, by_status = Counter[str](), Counter[str]()
    for group in _grouped(table, newest, since):
        counts[group.name] += group.count
        by_status[group.status] += group.count
    return counts, any(count >= MAX_BROKEN for count in by_status.values())


def _add_schedules(found: _Found, schedules: Sequence[CatalogueEntry]) -> None:
    """A schedule has the counts of what it starts, and the time at which it is due."""
    if not schedules:
        return
    names = [each.name for each in schedules]
    rows = Schedule.objects.using(alias_of(Schedule)).filter(name__in=names)
    due = dict(rows.values_list("name", "wake_at"))
    for each in schedules:
        of_target = found.of(each.target_kind, each.target)
        counts = Counts(of_target.live, of_target.done, of_target.broken, of_target.is_bound, of_target.is_broken_bound)
        counts.next_at = due.get(each.name)
        found.counts[each.key] = counts
