"""``DueQuery``: the one query that finds when the next row of each lane is due; and ``count_due``, how many are due.

It has a branch for each lane that is known: ``min(wake_at)`` over an index, one look-up. PostgreSQL looks a minimum up
only if it expects many rows, and reads all of them where it expects few, as after a burst into a table that was empty
when it was analyzed; so there it is the first row in the order of the index. Where the lanes of a model are
not known, it steps from lane to lane in the index that begins with queue and priority, one look-up for each lane,
however many rows a lane has: a recursive query, or on MariaDB a GROUP BY, which MariaDB executes in the same way. Two
more branches read what is paused.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from ..db.prepared import prepared_cursor
from ..db.writer import alias_of
from .lanes import NOT_DEFAULT, Lane, lane_condition, lane_params
from .models import Pause
from .pauses import Pauses, remember
from .wakeable import Wakeable

PAUSED_TARGET, PAUSED_ROW = -1, -2
"""Numbers of the branches that tell what is paused."""
_ANY = {"mysql": "> '1000-01-01'"}
"""What is true of each ``wake_at`` but NULL. Above a constant, MariaDB looks a minimum up. With IS NOT NULL it reads
all rows that wait for their time."""
Found = tuple[int, str, int, datetime]
"""The number of a model, a queue, a priority, and when the next row of that lane is due."""


class DueQuery:
    """Composes and executes the query, on one connection."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        self._branches: list[str] = []
        self._params: list[Any] = []
        self._steps: list[str] = []

    def add_lane(self, number: int, lane: Lane, start: datetime | None = None) -> None:
        """Find the next row of ``lane``. ``start``: skip rows with an earlier ``wake_at``."""
        condition = lane_condition(lane.model, is_default=lane.is_default)
        # PostgreSQL infers the types of parameters, but not in a list of columns.
        given = "%s::text, %s::integer" if self._connection.vendor == "postgresql" else "%s, %s"
        columns = "'', 0" if lane.is_default else given
        bound = _ANY.get(self._connection.vendor, "IS NOT NULL") if start is None else ">= %s"
        self._params += 2 * lane_params(lane)
        if start is not None:
            self._params.append(self._connection.ops.adapt_datetimefield_value(start))
        rows = f"FROM {self._table(lane.model)} WHERE {condition}wake_at {bound}"
        first = f"min(wake_at) {rows}"
        if self._connection.vendor == "postgresql":
            first = f"(SELECT wake_at {rows} ORDER BY wake_at LIMIT 1)"
        self._branches.append(f"SELECT {number}, {columns}, {first}")

    def add_all_lanes(self, number: int, model: type[Wakeable]) -> None:
        """Find the next row of each lane of ``model``."""
        table = self._table(model)
        if not self._connection.features.supports_partial_indexes:
            self._branches.append(
                f"SELECT {number}, queue, priority, min(wake_at) FROM {table} GROUP BY queue, priority"
            )
            return
        self.add_lane(number, Lane(model))
        name, columns = f"lane{number}", "queue, priority, wake_at"
        head = f"SELECT {{}} FROM {table} WHERE {{}}wake_at IS NOT NULL AND {NOT_DEFAULT} ORDER BY {columns} LIMIT 1"
        # The subquery has columns of these names itself, so the condition of the index is repeated literally.
        after = "(queue, priority) > (last.queue, +last.priority) AND "
        if self._connection.vendor == "postgresql":
            first = f"({head.format(columns, '')})"
            following = f"SELECT next.* FROM {name} last, LATERAL ({head.format(columns, after)}) next"
        else:
            first = f"SELECT {columns} FROM {table} WHERE id = ({head.format('id', '')})"
            following = (
                f"SELECT next.queue, next.priority, next.wake_at FROM {name} last "
                f"CROSS JOIN {table} next ON next.id = ({head.format('id', after)})"
            )
        self._steps.append(f"{name} ({columns}) AS ({first} UNION ALL {following})")
        self._branches.append(f"SELECT {number}, {columns} FROM {name}")

    def execute(self) -> tuple[list[Found], Pauses]:
        """Return when the next row of each lane is due, and what is paused."""
        table = self._table(Pause)
        self._branches += [
            f"SELECT {PAUSED_TARGET}, target, 0, NULL FROM {table} WHERE row_pk IS NULL",
            # The first one tells that there are some.
            f"SELECT {PAUSED_ROW}, '', 0, NULL FROM (SELECT 1 FROM {table} WHERE row_pk IS NOT NULL LIMIT 1) AS one",
        ]
        steps = f"WITH RECURSIVE {', '.join(self._steps)} " if self._steps else ""
        with prepared_cursor(self._connection) as cursor:
            cursor.execute(steps + " UNION ALL ".join(self._branches), self._params)
            rows = cursor.fetchall()
        convert = _converter(self._connection)
        found = [(number, queue, priority, convert(value)) for number, queue, priority, value in rows if value]
        targets = [text for number, text, *_ in rows if number == PAUSED_TARGET]
        return found, remember(targets, has_rows=any(number == PAUSED_ROW for number, *_ in rows))

    def _table(self, model: type[Model]) -> str:
        return self._connection.ops.quote_name(model._meta.db_table)


def count_due(lane: Lane, now: datetime, limit: int, *, after: datetime | None = None) -> int:
    """Return how many rows of ``lane`` are due, ``limit`` at most. Reads only an index.

    ``after``: only rows that become due after this moment and are not leased, so that they are planned until ``now``.
    """
    connection = connections[alias_of(lane.model)]
    condition = lane_condition(lane.model, is_default=lane.is_default)
    table = connection.ops.quote_name(lane.model._meta.db_table)
    planned = "" if after is None else " AND wake_at > %s AND lease IS NULL"
    moments = [connection.ops.adapt_datetimefield_value(each) for each in (now, after) if each is not None]
    with connection.cursor() as cursor:
        rows = f"SELECT 1 FROM {table} WHERE {condition}wake_at <= %s{planned} LIMIT {limit}"
        cursor.execute(f"SELECT count(*) FROM ({rows}) AS due", [*lane_params(lane), *moments])
        (count,) = cursor.fetchone()
    return int(count)


def _converter(connection: BaseDatabaseWrapper) -> Callable[[object], datetime]:
    """Return the function that converts raw datetimes of this database to Python's, as Django does for the column."""
    field = Wakeable._meta.get_field("wake_at")
    converters = [
        *connection.ops.get_db_converters(field.get_col("")),
        *field.get_db_converters(connection),
    ]

    def convert(value: object) -> datetime:
        for converter in converters:
            value = converter(value, field, connection)
        return value  # type: ignore[return-value]

    return convert
