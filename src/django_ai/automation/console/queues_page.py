"""The page of queues and limits: how much is due in each queue and since when, and who waits for which slot."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import models

from ..queues.admin_stories import Reader
from ..queues.lanes import LanedWakeable, shown_name
from ..queues.leased import leased_rows
from ..queues.models import Limiter, Slot, SlotState
from ..queues.operations.health import MAX_COUNTED_ROWS, check_health
from ..queues.registry import wakeables
from .holders import rows_of_slots
from .reading import MAX_ENTRIES, page_of
from .story import Fact, duration_text

SHOWN_SLOTS = 3
MAX_SLOTS = 1000


@dataclass(frozen=True, slots=True)
class QueueLine:
    """The rows of one kind in one queue. ``stuck``: no live worker makes progress with them."""

    queue: str
    kind: str
    due: str
    age: str
    leased: int
    workers: int
    stuck: bool


@dataclass(slots=True)
class LimitLine:
    """A limit for one value of its key, with the first rows that hold a slot and that wait for one."""

    title: str
    url: str
    held: int = 0
    queued: int = 0
    holders: list[Fact] = field(default_factory=list)
    waiting: list[Fact] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class QueuesDesk:
    """What the page shows."""

    queues: list[QueueLine]
    limits: list[LimitLine]
    paused: list[str]
    is_cut: bool


def queues_desk(reader: Reader, now: datetime, *, with_limits: bool) -> QueuesDesk:
    """Read the page. The number of queries depends on the kinds and queues only."""
    health = check_health(now, timedelta(0))
    laned = [model for model in wakeables() if issubclass(model, LanedWakeable)]
    leased: dict[tuple[str, str], int] = {}
    for rows in leased_rows(now, laned).values():
        for row in rows:
            leased[shown_name(row.queue), row.kind] = leased.get((shown_name(row.queue), row.kind), 0) + 1
    lines = []
    for each in health.overdue:
        count = f"{each.count:,}+" if each.count >= MAX_COUNTED_ROWS else f"{each.count:,}"
        held, age = leased.pop((each.queue, each.worker_kind), 0), duration_text(now - each.since)
        lines.append(QueueLine(each.queue, each.kind, count, age, held, each.workers, not each.makes_progress))
    for (queue, kind), held in leased.items():
        lines.append(QueueLine(queue, kind, "0", "", held, health.workers_by_queue.get(queue, 0), stuck=False))
    shown = {line.queue for line in lines}
    for queue, workers in health.workers_by_queue.items():
        if queue not in shown:
            lines.append(QueueLine(queue, "", "0", "", 0, workers, stuck=False))
    limits, is_cut = _limits(reader) if with_limits else ([], False)
    return QueuesDesk(sorted(lines, key=lambda line: (line.queue, line.kind)), limits, list(health.paused), is_cut)


def _without_value(limiter: Limiter) -> str:
    return f"{limiter.limit} ({limiter.row_kind} {limiter.name}, #{limiter.pk})"


def _limits(reader: Reader) -> tuple[list[LimitLine], bool]:
    limiters = list(Limiter.objects.order_by("-pk")[: MAX_ENTRIES + 1])
    is_cut = len(limiters) > MAX_ENTRIES
    lines = {
        each.pk: LimitLine(str(each) if reader.may_see_data else _without_value(each), page_of(each, reader))
        for each in limiters[:MAX_ENTRIES]
    }
    used = Slot.objects.filter(limiter__in=list(lines), state__in=[SlotState.HELD, SlotState.QUEUED])
    for pk, state, count in used.order_by().values_list("limiter", "state").annotate(count=models.Count("pk")):
        line = lines[pk]
        line.held, line.queued = (count, line.queued) if state == SlotState.HELD else (line.held, count)
    shown: dict[tuple[int, str], list[Slot]] = {}
    for slot in used.order_by("pk")[:MAX_SLOTS]:
        listed = shown.setdefault((slot.limiter_id, slot.state), [])
        if len(listed) < SHOWN_SLOTS:
            listed.append(slot)
    rows = rows_of_slots(slot for listed in shown.values() for slot in listed)
    for (pk, state), listed in shown.items():
        target = lines[pk].holders if state == SlotState.HELD else lines[pk].waiting
        for slot in listed:
            row = rows.get((slot.row_kind, slot.row_pk or 0))
            target.append(
                Fact("", f"{slot.row_kind} #{slot.row_pk}" if row is None else str(row), page_of(row, reader))
            )
    shown_lines = [line for line in lines.values() if line.held or line.queued]
    return sorted(shown_lines, key=lambda line: (-line.queued, -line.held)), is_cut
