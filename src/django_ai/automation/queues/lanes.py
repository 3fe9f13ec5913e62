"""Lanes: the named queues and the priorities of runs, callback executions and agents.

A *lane* is the rows of one model with the same queue and priority. A claim takes rows of one lane. Most projects have
one lane for each model, the default one: the queue "default", stored as an empty string, and the priority 0. Its due
rows are found by the main wake index, which contains no other lane. Other lanes are found by a second index, which
begins with queue and priority and is empty in such projects. It is read only where the code declares a queue or a
priority (``declare``), or where rows of such a lane were found (``look_for_lanes``): another release may have inserted
them.

Among the lanes of a model, the one that has waited longest comes first, where each point of priority counts as
``AGEING`` of waiting (``Lane.rank``). So a row of low priority comes later, and nothing starves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, NamedTuple

from django.db import connections, models
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..db.indexes import PartialIndex, PartialOnlyIndex
from ..db.writer import alias_of
from ..exceptions import DefinitionError
from ..values.callables import check_parameters, check_synchronous
from .wakeable import Wakeable

DEFAULT_QUEUE = "default"
"""The name of the queue of rows whose code names none. It is stored as an empty string."""
AGEING = timedelta(seconds=30)
"""How much earlier a row counts as due for each point of its priority."""
MAX_PRIORITY = 100
"""Priorities lie between ``-MAX_PRIORITY`` and ``MAX_PRIORITY``."""
ANY_QUEUE = "*"
"""Stands for any queue in the name of a doorbell."""

Priority = int | Callable[[Any], int]
"""A priority, or a function that returns one."""


class LanedWakeable(Wakeable):
    """A Wakeable with a queue and a priority. Both are set when the row is inserted."""

    queue = models.CharField(_("queue"), max_length=50, blank=True, default="", editable=False)
    priority = models.SmallIntegerField(_("priority"), default=0, editable=False)

    class Meta:
        abstract = True

    @property
    def needed_worker(self) -> str:
        return gettext("a worker of the queue %s") % repr(self.queue) if self.queue else super().needed_worker


class Lane(NamedTuple):
    """The rows of ``model`` with this queue (empty: the default one) and this priority."""

    model: type[Wakeable]
    queue: str = ""
    priority: int = 0

    @property
    def is_default(self) -> bool:
        return not self.queue and not self.priority

    @property
    def name(self) -> str:
        """The kind of its rows and, unless it is the default one, its queue: how doorbells and reports name it."""
        return f"{self.model.kind}:{self.queue}" if self.queue else self.model.kind

    def rank(self, wake_at: datetime) -> tuple[datetime, int]:
        """Return the order of a row that is due since ``wake_at`` among the rows of other lanes: lower comes first."""
        return wake_at - AGEING * self.priority, -self.priority


def lane_of(row: Wakeable) -> Lane:
    """Return the lane of ``row``."""
    return Lane(type(row), row.queue, row.priority) if isinstance(row, LanedWakeable) else Lane(type(row))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows a worker performs: those of some models (None: all), of some queues (None: all), but not of the
    ``excluded`` queues. Queues are given as they are stored."""

    models: frozenset[type[Wakeable]] | None = None
    queues: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        models: Collection[type[Wakeable]] | None = None,
        queues: Collection[str] | None = None,
        except_queues: Collection[str] = (),
    ) -> Selection:
        """Return the selection of these models and of these queues, which are given by their names."""
        return cls(
            None if models is None else frozenset(models),
            None if queues is None else frozenset(map(stored_name, queues)),
            frozenset(map(stored_name, except_queues)),
        )

    def __contains__(self, lane: Lane) -> bool:
        return (self.models is None or lane.model in self.models) and self.has_queue(lane.queue)

    def has_queue(self, queue: str) -> bool:
        return (self.queues is None or queue in self.queues) and queue not in self.excluded

    def has_all(self, models: Iterable[type[Wakeable]]) -> bool:
        """Return whether all rows of ``models`` are selected."""
        everywhere = self.queues is None and not self.excluded
        return everywhere and (self.models is None or set(models) <= self.models)

    def is_concerned(self, doorbell: str) -> bool:
        """Return whether a doorbell of this name (``Lane.name``) may ring for selected rows."""
        kind, _, queue = doorbell.partition(":")
        return self._has_kind(kind) and (queue == ANY_QUEUE or self.has_queue(queue))

    def covers(self, doorbell: str) -> bool:
        """Return whether all rows that a doorbell of this name rings for are selected."""
        kind, _, queue = doorbell.partition(":")
        if queue == ANY_QUEUE:
            return self._has_kind(kind) and self.queues is None and not self.excluded
        return self._has_kind(kind) and self.has_queue(queue)

    def _has_kind(self, kind: str) -> bool:
        return self.models is None or any(model.kind == kind for model in self.models)


EVERYTHING = Selection()


def stored_name(queue: str) -> str:
    """Return the name of a queue as it is stored."""
    return "" if queue == DEFAULT_QUEUE else queue


def shown_name(queue: str) -> str:
    """Return the name of a stored queue as users write it."""
    return queue or DEFAULT_QUEUE


# -- what the code declares --------------------------------------------------------------------------------------------

_declared: dict[str, set[tuple[str, int | None]]] = {}
"""The lanes that the code declares, by the kind of row. A priority that a function computes is None."""
_found: set[type[Wakeable]] = set()
"""Models with rows in lanes that this code does not declare."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,49}")


def check_queue(queue: Any, what: str) -> str:
    """Return the argument ``queue`` of a decorator as it is stored. Raises ``DefinitionError``."""
    if queue is None:
        return ""
    if not isinstance(queue, str) or not _NAME.fullmatch(queue):
        raise DefinitionError(
            f"{what}: queue={queue!r} must be a name of 1 to 50 letters, digits, '_', '.' and '-' that begins with a "
            "letter or digit, as in queue='reports'."
        )
    return stored_name(queue)


def check_priority(priority: Any, what: str, argument: str) -> Priority:
    """Return the argument ``priority`` of a decorator. ``argument``: what a function of it is called with. Raises
    ``DefinitionError``."""
    if callable(priority):
        check_synchronous(priority, f"{what}: priority")
        check_parameters(priority, f"{what}: priority", argument)
        return priority  # type: ignore[no-any-return]
    return _checked(priority, f"{what}: priority={priority!r}")


def check_window_priority(priority: Priority, what: str) -> None:
    """Raise ``DefinitionError`` for a function where a row is for several events."""
    if callable(priority):
        raise DefinitionError(
            f"{what}: priority= must be a number with debounce= or batch=, because a row has several events."
        )


def _checked(priority: Any, what: str) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MAX_PRIORITY:
        raise DefinitionError(
            f"{what} must be a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY} (higher comes first; each point "
            f"counts as {AGEING.seconds} s of waiting), or a function that returns one."
        )
    return priority


def priority_for(priority: Priority, argument: Any, what: str) -> int:
    """Return the priority of a row: a function of it is called with ``argument``.

    Raises what the function raises, and ``DefinitionError`` for a result that is no priority.
    """
    if not callable(priority):
        return priority
    found = priority(argument)
    return _checked(found, f"{what}: priority={getattr(priority, '__qualname__', priority)!s} returned {found!r}; it")


def declare(kind: str, queue: str, priority: Priority) -> None:
    """Let workers look up the lanes of this kind of row, where the code names a queue or a priority."""
    if queue or priority:
        _declared.setdefault(kind, set()).add((queue, None if callable(priority) else priority))


def declared_lanes(model: type[Wakeable]) -> set[Lane]:
    """Return the lanes of ``model`` that the code declares with a fixed priority."""
    return {Lane(model, queue, priority) for queue, priority in _declared.get(model.kind, ()) if priority is not None}


def declared_queues() -> list[str]:
    """Return the names of all queues that the code declares, with the default one."""
    return sorted({DEFAULT_QUEUE, *(queue for lanes in _declared.values() for queue, _ in lanes if queue)})


def are_used(model: type[Wakeable]) -> bool:
    """Return whether lanes of ``model`` other than the default one are looked up."""
    return model.kind in _declared or model in _found


def check_queue_names(names: Iterable[str], kinds: Collection[str], others: Collection[str] = ()) -> None:
    """Raise ``ValueError`` for the first of ``names`` that is no queue. ``others``: queues that no code declares."""
    known = sorted({*declared_queues(), *others})
    for name in names:
        if name in known:
            continue
        near = get_close_matches(name, known, n=1)
        if name in kinds:
            hint = f" It is a kind of row: write --kinds {name}."
        else:
            hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no queue {name!r}.{hint} Queues that the code declares: {', '.join(known)}.")


def reset() -> None:
    """Forget what was declared and found (tests)."""
    _declared.clear()
    _found.clear()


# -- the indexes, and the conditions that use them ---------------------------------------------------------------------


def lane_indexes(label: str) -> list[models.Index]:
    """Return the indexes that find due rows of the laned model ``label``: of the default lane, and of the others.

    MariaDB has no partial indexes. There the first one begins with queue and priority and serves every lane.
    """
    default, due = models.Q(queue="", priority=0), models.Q(wake_at__isnull=False)
    columns = ["queue", "priority", "wake_at"]
    return [
        PartialIndex(fields=["wake_at"], name=f"{label}_wake", condition=default & due, elsewhere=columns),
        PartialOnlyIndex(fields=columns, name=f"{label}_lanes", condition=due & ~default),
    ]


def lane_condition(model: type[Wakeable], *, is_default: bool) -> str:
    """Return the SQL condition for rows of the default lane of ``model``, or of one other lane. It ends with AND, or is
    empty where the model has no lanes. Its parameters are ``lane_params``.

    It repeats the conditions of the indexes literally: SQLite uses a partial index only then.
    """
    if not issubclass(model, LanedWakeable):
        return ""
    return "queue = '' AND priority = 0 AND " if is_default else f"queue = %s AND priority = %s AND {NOT_DEFAULT} AND "


def lane_params(lane: Lane) -> list[Any]:
    return [] if lane.is_default else [lane.queue, lane.priority]


NOT_DEFAULT = "NOT (priority = 0 AND queue = '')"


def look_for_lanes(candidates: Iterable[type[Wakeable]]) -> int:
    """Find the models with due or waiting rows in lanes that this code does not declare, so that they are performed;
    return how many were not known. One query for each model whose lanes no code declares."""
    global _found
    models = (model for model in candidates if issubclass(model, LanedWakeable) and model.kind not in _declared)
    found: set[type[Wakeable]] = {model for model in models if _has_other_lanes(model)}
    unknown, _found = found - _found, found
    return len(unknown)


def _has_other_lanes(model: type[Wakeable]) -> bool:
    connection = connections[alias_of(model)]
    table = connection.ops.quote_name(model._meta.db_table)
    has_partial_indexes = connection.features.supports_partial_indexes
    with connection.cursor() as cursor:
        if has_partial_indexes:
            cursor.execute(f"SELECT 1 FROM {table} WHERE wake_at IS NOT NULL AND {NOT_DEFAULT} LIMIT 1")
        else:
            cursor.execute(f"SELECT queue, priority, min(wake_at) FROM {table} GROUP BY queue, priority")
        rows = cursor.fetchall()
    if has_partial_indexes:
        return bool(rows)
    return any((queue or priority) and wake_at is not None for queue, priority, wake_at in rows)
