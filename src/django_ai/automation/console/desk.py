"""The overview: what is broken, what is due, what is planned, who works, and what is paused, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext

from ..queues.due_query import count_due
from ..queues.lanes import Lane, shown_name
from ..queues.operations.health import Health, check_health
from ..queues.registry import due_times
from .problems import Problem, problems
from .story import Tone, duration_text, moment_text

MAX_COUNTED_ROWS = 10_000
SOON = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class DueLine:
    """The rows of one kind and queue that are due now."""

    kind: str
    queue: str
    count: str
    age: str


@dataclass(frozen=True, slots=True)
class Desk:
    """What the overview shows."""

    tone: Tone
    summary: str
    workers: str
    due: list[DueLine]
    planned: list[tuple[str, str]]
    paused: list[str]
    problems: list[Problem]
    read_at: str


def desk(now: datetime) -> Desk:
    """Read the overview. The number of queries depends on the kinds and lanes only, and each reads an index; counts
    stop at ``MAX_COUNTED_ROWS``."""
    health, broken, times = check_health(now), problems(), due_times()
    return Desk(
        tone=Tone.BAD if not health.is_healthy else Tone.WAITING if broken or not health.workers else Tone.GOOD,
        summary=str(health),
        workers=_workers(health),
        due=_due(times, now),
        planned=_planned(times, now),
        paused=list(health.paused),
        problems=broken,
        read_at=moment_text(now),
    )


def _workers(health: Health) -> str:
    seen = gettext("Workers that are alive: %s.") % health.workers
    if health.workers or health.last_seen_at is None:
        return seen
    return f"{seen} " + gettext("The last one was seen %s.") % moment_text(health.last_seen_at)


def _due(times: Mapping[Lane, datetime], now: datetime) -> list[DueLine]:
    found = []
    for lane, since in sorted(times.items(), key=lambda each: each[1]):
        if since <= now:
            count = count_due(lane, now, MAX_COUNTED_ROWS)
            name = str(lane.model._meta.verbose_name_plural)
            found.append(DueLine(name, shown_name(lane.queue), _capped(count), duration_text(now - since)))
    return found


def _planned(times: Mapping[Lane, datetime], now: datetime) -> list[tuple[str, str]]:
    """Return how many rows of each kind become due in the next hour. Only lanes that have a timer are asked."""
    counts: dict[str, int] = {}
    for lane in times:
        name = str(lane.model._meta.verbose_name_plural)
        counts[name] = counts.get(name, 0) + count_due(lane, now + SOON, MAX_COUNTED_ROWS, after=now)
    return [(name, _capped(count)) for name, count in counts.items() if count]


def _capped(count: int) -> str:
    return f"{count:,}+" if count >= MAX_COUNTED_ROWS else f"{count:,}"
