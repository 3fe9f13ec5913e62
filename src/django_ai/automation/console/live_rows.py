"""Groups of the rows of whole tables, read in ranges, so that each statement is short and memory stays bounded.

A statement for each group would read millions of rows again and again, and one for a whole table holds a snapshot for
as long as it takes. So each range is grouped by the database, and the groups of all ranges are joined here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from django.db.models import Count, Min, Model, QuerySet

from ..db.writer import alias_of

RANGE_ROWS = 20_000
"""Rows that one statement groups. So few that PostgreSQL finds the events of executions by their keys; for 100,000 it
reads the whole table of events each time."""
EXAMPLES_PER_QUERY = 500
MAX_EXCLUDED = 500
"""Names that one statement excludes."""


class Shown(Protocol):
    """What shows how many rows are read, such as ``queues.progress.Progress``."""

    def show(self, done: int) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Group:
    """Rows with equal values. ``first``: the one with the lowest primary key, which is loaded."""

    values: dict[str, Any]
    number: int
    first: Any


class LiveRows:
    """Reads rows in ranges, and shows how many of ``tables`` it has read.

    Args:
        tables: All models whose rows are read, each as often as it is read.
        progress: Makes what shows it of a label and the number of rows. Default: nothing is shown.
    """

    def __init__(self, tables: Sequence[type[Model]], progress: Callable[[str, int], Shown] | None) -> None:
        self._done, self._shown = 0, None
        if progress is not None:
            self._shown = progress("Checking", sum(_all(each).count() for each in tables))

    def groups(self, rows: QuerySet[Any, Any], *names: str, related: Sequence[str] = ()) -> Iterator[Group]:
        """Yield the groups of ``rows`` by the columns or annotations ``names``, in their order.

        ``related``: what is loaded with the first row of each.
        """
        found: dict[tuple[Any, ...], tuple[int, int]] = {}
        for part in self._ranges(rows):
            grouped = part.order_by().values(*names).annotate(group_size=Count("pk"), group_first=Min("pk"))
            for each in grouped:
                key = tuple(each[name] for name in names)
                number, first = found.get(key, (0, each["group_first"]))
                found[key] = number + each["group_size"], min(first, each["group_first"])
        ordered = sorted(found.items(), key=lambda each: tuple(map(str, each[0])))
        for start in range(0, len(ordered), EXAMPLES_PER_QUERY):
            some = ordered[start : start + EXAMPLES_PER_QUERY]
            examples = rows.model._default_manager.all()
            examples = examples.select_related(*related) if related else examples  # without names: everything
            loaded = examples.in_bulk([first for _, (_, first) in some])
            for key, (number, first) in some:
                if first in loaded:  # else it was deleted meanwhile
                    yield Group(dict(zip(names, key, strict=True)), number, loaded[first])

    def newest(self, rows: QuerySet[Any, Any], column: str, limit: int) -> Iterator[Any]:
        """Yield the newest ``limit`` of ``rows`` with each value of ``column``, the newest first."""
        counts: dict[str, int] = {}
        for part in self._ranges(rows, newest_first=True):
            complete = [name for name, number in counts.items() if number >= limit][:MAX_EXCLUDED]
            wanted = []
            for pk, name in part.exclude(**{f"{column}__in": complete}).order_by("-pk").values_list("pk", column):
                if counts.get(name, 0) < limit:
                    counts[name] = counts.get(name, 0) + 1
                    wanted.append(pk)
            for start in range(0, len(wanted), EXAMPLES_PER_QUERY):
                pks = wanted[start : start + EXAMPLES_PER_QUERY]
                yield from rows.filter(pk__in=pks).order_by("-pk")

    def end(self) -> None:
        """All tables are read."""
        if self._shown is not None:
            self._shown.end()

    def _ranges(self, rows: QuerySet[Any, Any], *, newest_first: bool = False) -> Iterator[QuerySet[Any, Any]]:
        """Yield the rows of each range of keys. The ranges are of all rows of the table, so that an index has them."""
        order, beyond, upto = ("-pk", "lt", "gte") if newest_first else ("pk", "gt", "lte")
        keys = _all(rows.model).order_by(order).values_list("pk", flat=True)
        rest, part = keys, rows
        while True:
            last = next(iter(rest[RANGE_ROWS - 1 : RANGE_ROWS]), None)
            yield part if last is None else part.filter(**{f"pk__{upto}": last})
            self._show(rest.count() if last is None else RANGE_ROWS)
            if last is None:
                return
            rest, part = keys.filter(**{f"pk__{beyond}": last}), rows.filter(**{f"pk__{beyond}": last})

    def _show(self, number: int) -> None:
        self._done += number
        if self._shown is not None:
            self._shown.show(self._done)


def _all(model: type[Model]) -> QuerySet[Any, Any]:
    return model._base_manager.using(alias_of(model))
