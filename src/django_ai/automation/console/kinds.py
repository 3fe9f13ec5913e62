"""Slow and failing kinds: which steps, callbacks and handlers take long or fail, among the newest executions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import models
from django.utils.translation import gettext

from ..agents.models import AgentRun, HandlerExecution
from ..db.writer import alias_of
from ..events.models import CallbackExecution
from ..workflows.models import StepExecution, WorkflowRun
from ..workflows.statuses import LOST
from .story import duration_text

MAX_ROWS = 500
"""Executions of each kind that are read, the newest ones."""
MAX_LINES = 5
FAILED_OUTCOMES = {"error", "fail", LOST}


@dataclass(slots=True)
class _Measured:
    times: list[timedelta] = field(default_factory=list)
    failed: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class KindLine:
    """A step, callback or handler. ``median`` and ``slowest``: how long its code ran; ``failed``: of how many."""

    model: type[models.Model]
    name: str
    count: int
    failed: int
    share: float
    median: timedelta
    slowest: timedelta

    @property
    def median_text(self) -> str:
        return duration_text(self.median)

    @property
    def slowest_text(self) -> str:
        return duration_text(self.slowest)

    @property
    def failed_text(self) -> str:
        return gettext("%(failed)s of %(count)s") % {"failed": f"{self.failed:,}", "count": f"{self.count:,}"}


@dataclass(frozen=True, slots=True)
class Kinds:
    """The slowest and those that fail most often, the worst first. ``since``: when the oldest that was read began."""

    slow: list[KindLine]
    failing: list[KindLine]
    since: datetime | None


def kinds(readable: Sequence[type[models.Model]]) -> Kinds:
    """Read the newest executions of what belongs to the ``readable`` models: one query for each kind."""
    lines: list[KindLine] = []
    oldest: datetime | None = None
    for model, rows in _rows(readable):
        measured: dict[str, _Measured] = {}
        for name, started, finished, has_failed in rows:
            if finished is None:
                continue
            oldest = finished if oldest is None or finished < oldest else oldest
            one = measured.setdefault(name, _Measured())
            one.count += 1
            one.failed += has_failed
            if started is not None:
                one.times.append(max(finished - started, timedelta(0)))
        lines += [_line(model, name, one) for name, one in measured.items()]
    slow = sorted((each for each in lines if each.slowest), key=lambda each: each.median, reverse=True)
    failing = sorted((each for each in lines if each.failed), key=lambda each: (each.share, each.failed), reverse=True)
    return Kinds(slow[:MAX_LINES], failing[:MAX_LINES], oldest)


def _line(model: type[models.Model], name: str, one: _Measured) -> KindLine:
    times = sorted(one.times) or [timedelta(0)]
    return KindLine(model, name, one.count, one.failed, one.failed / one.count, times[len(times) // 2], times[-1])


Row = tuple[str, datetime | None, datetime | None, bool]


def _rows(readable: Sequence[type[models.Model]]) -> Iterator[tuple[type[models.Model], Iterator[Row]]]:
    if WorkflowRun in readable:
        steps = _newest(StepExecution, "run__name", "step", "started", "finished", "outcome")
        yield (
            WorkflowRun,
            ((f"{name}.{step}", start, end, how in FAILED_OUTCOMES) for name, step, start, end, how in steps if start),
        )
    if CallbackExecution in readable:
        calls = _ended(CallbackExecution, "callback", "started_at", "finished_at", "status")
        yield CallbackExecution, ((name, start, end, how == "failed") for name, start, end, how in calls)
    if AgentRun in readable:
        handled = _ended(HandlerExecution, "run__name", "handler", "started_at", "finished_at", "status")
        yield (
            AgentRun,
            ((f"{name}.{handler}", start, end, how == "failed") for name, handler, start, end, how in handled),
        )


def _newest(model: type[models.Model], *columns: str) -> Any:
    return model._base_manager.using(alias_of(model)).order_by("-pk").values_list(*columns)[:MAX_ROWS]


def _ended(model: type[models.Model], *columns: str) -> Any:
    rows = model._base_manager.using(alias_of(model)).filter(finished_at__isnull=False)
    return rows.order_by("-finished_at").values_list(*columns)[:MAX_ROWS]
