"""What lies in the lanes now: how many rows are due or planned, which are leased, and which wake in a period. A few
queries, whatever the number of lanes and rows: each branch reads a range of one index, and stops at a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from ..conf import conf
from ..db.writer import alias_of
from ..values.clock import later
from .lanes import Lane, lane_condition, lane_params
from .wakeable import Wakeable, leased_at


@dataclass(frozen=True, slots=True)
class LaneCount:
    """The numbers of rows of a lane: due, planned until a moment, and planned after it; each up to the limit."""

    lane: Lane
    due: int
    soon: int
    later: int


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """A row that a worker performs now. ``holder``: host and process id. ``since``: when it was claimed, if that is
    known; ``until``: when its lease ends unless it is renewed."""

    model: type[Wakeable]
    pk: int
    holder: str
    since: datetime | None
    until: datetime


def count_lanes(lanes: Sequence[Lane], now: datetime, soon: datetime, limit: int) -> list[LaneCount]:
    """Count the rows of ``lanes`` that are due, that are due until ``soon``, and later. Leased rows are not counted."""
    if not lanes:
        return []
    connection = connections[alias_of(lanes[0].model)]
    at, until = (connection.ops.adapt_datetimefield_value(each) for each in (now, soon))
    spans: list[tuple[str, list[Any]]] = [
        ("wake_at <= %s", [at]),
        ("wake_at > %s AND wake_at <= %s AND lease IS NULL", [at, until]),
        # A lease is renewed long before it is that old, and without the condition the index alone answers.
        ("wake_at > %s" + ("" if soon >= later(now, 2 * conf().LEASE) else " AND lease IS NULL"), [until]),
    ]
    branches, params = [], []
    for number, lane in enumerate(lanes):
        for place, (span, moments) in enumerate(spans):
            rows = f"SELECT 1 FROM {_table(connection, lane)} WHERE {_condition(lane)}{span} LIMIT {limit}"
            branches.append(f"SELECT {number}, {place}, count(*) FROM ({rows}) AS counted")
            params += [*lane_params(lane), *moments]
    counts = {(number, place): int(count) for number, place, count in _rows(connection, branches, params)}
    return [
        LaneCount(lane, *(counts[number, place] for place in range(len(spans)))) for number, lane in enumerate(lanes)
    ]


def leased_rows(lanes: Sequence[Lane], now: datetime, limit: int) -> list[LeasedRow]:
    """Return the rows of ``lanes`` that workers perform now. Of each lane at most ``limit`` rows are read that are
    leased, or due before a new lease would end. A lease is renewed every few seconds, so none wakes later; one that has
    run out is left out, because its row is due."""
    since, until = (later(at, timedelta(microseconds=1)) for at in (now, later(now, 2 * conf().LEASE)))
    return [
        LeasedRow(lanes[number].model, pk, lease.rsplit(":", 1)[0], leased_at(lease), wake_at)
        for number, pk, lease, wake_at in _waking(lanes, since, until, limit, "lease IS NOT NULL")
    ]


def waking_rows(
    lanes: Sequence[Lane], since: datetime | None, until: datetime, limit: int
) -> dict[type[Wakeable], list[int]]:
    """Return the primary keys of the rows of ``lanes`` that wake from ``since`` (None: also those that are due) to
    before ``until``, by model. Of each lane the first ``limit`` rows are read; those that are parked, and wake only to
    look for their code again, are passed by."""
    found: dict[type[Wakeable], list[int]] = {}
    for number, pk, *_ in _waking(lanes, since, until, limit, passing=" AND parked_at IS NULL"):
        found.setdefault(lanes[number].model, []).append(pk)
    return found


def _waking(
    lanes: Sequence[Lane], since: datetime | None, until: datetime, limit: int, condition: str = "", passing: str = ""
) -> list[tuple[int, int, str, datetime]]:
    """Return (number of the lane, primary key, lease, wake time) of the first rows of lanes that wake in a period."""
    if not lanes:
        return []
    connection = connections[alias_of(lanes[0].model)]
    spans = [("wake_at >= %s AND ", since)] if since is not None else []
    spans.append(("wake_at < %s", until))
    span, moments = "".join(text for text, _ in spans), [at for _, at in spans]
    branches, params = [], []
    for number, lane in enumerate(lanes):
        first = (
            f"SELECT id, lease, wake_at FROM {_table(connection, lane)} "
            f"WHERE {_condition(lane)}{span}{passing} ORDER BY wake_at LIMIT {limit}"
        )
        where = f" WHERE {condition}" if condition else ""
        branches.append(f"SELECT {number}, id, lease, wake_at FROM ({first}) AS waking{where}")
        params += [*lane_params(lane), *(connection.ops.adapt_datetimefield_value(each) for each in moments)]
    rows = _rows(connection, branches, params)
    return [(number, pk, lease, _moment(connection, wake_at)) for number, pk, lease, wake_at in rows]


def _moment(connection: BaseDatabaseWrapper, value: datetime | str) -> datetime:
    """Return a column of a cursor as a moment: SQLite has text, and MariaDB values without a time zone."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment if timezone.is_aware(moment) else moment.replace(tzinfo=connection.timezone or UTC)


def _table(connection: BaseDatabaseWrapper, lane: Lane) -> str:
    return connection.ops.quote_name(lane.model._meta.db_table)


def _condition(lane: Lane) -> str:
    return lane_condition(lane.model, is_default=lane.is_default)


def _rows(connection: BaseDatabaseWrapper, branches: list[str], params: list[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(branches), params)
        return list(cursor.fetchall())
