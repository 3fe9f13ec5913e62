"""The picture of what has ended, minute by minute: paths for an SVG, and the words that say the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.translation import gettext

from .activity import PERIOD, Activity, Counts

WIDTH = int(PERIOD.total_seconds() // 60)
"""One unit for each minute."""
UP, DOWN = 80, 40
"""The units above the axis, for what is done, and below it, for what has failed."""
TICK = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid, with its label."""

    x: int
    label: str


@dataclass(frozen=True, slots=True)
class HourLine:
    """A row of the table that stands for the picture."""

    hour: str
    done: str
    failed: str
    late: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What the template draws. ``done``, ``late`` and ``failed``: the data of paths."""

    width: int
    height: int
    axis: int
    done: str
    late: str
    failed: str
    ticks: list[Tick]
    summary: str
    peak: str
    hours: list[HourLine]
    note: str


def chart(found: Activity) -> Chart:
    """Draw the activity of a day."""
    start = found.until - PERIOD
    most = max((each.done for each in found.minutes.values()), default=0)
    worst = max((max(each.failed, each.late) for each in found.minutes.values()), default=0)
    done, late, failed = [], [], []
    for minute, counts in sorted(found.minutes.items()):
        x = min(max(int((minute - start).total_seconds() // 60), 0), WIDTH - 1)
        done.append(_bar(x, UP, -_height(counts.done, most, UP)))
        failed.append(_bar(x, UP, _height(counts.failed, worst, DOWN)))
        late.append(_bar(x, UP + _height(counts.failed, worst, DOWN), _late_height(counts, worst)))
    total = found.total
    return Chart(
        width=WIDTH,
        height=UP + DOWN,
        axis=UP,
        done="".join(done),
        late="".join(late),
        failed="".join(failed),
        ticks=_ticks(start, found.until),
        summary=_summary(total),
        peak=_peak(found),
        hours=[_hour_line(hour, counts) for hour, counts in found.by_hour()],
        note=""
        if not found.is_cut
        else gettext("Only since %s: before that there is too much to count.")
        % f"{timezone.localtime(found.since):%H:%M}",
    )


def _bar(x: int, y: float, height: float) -> str:
    return f"M{x} {y:g}h1v{height:g}h-1z" if height else ""


def _height(count: int, most: int, units: int) -> float:
    """Return the height of a bar: at least one and a half units if there is anything to see."""
    return 0 if not count else max(round(count / most * units, 1), 1.5)


def _late_height(counts: Counts, worst: int) -> float:
    """Return the height of what was late, below what has failed, within the picture."""
    free = DOWN - _height(counts.failed, worst, DOWN)
    return min(_height(counts.late, worst, DOWN), max(free, 0))


def _ticks(start: datetime, until: datetime) -> list[Tick]:
    found = []
    local = timezone.localtime(until).replace(minute=0, second=0, microsecond=0)
    moment = local - timedelta(hours=local.hour % 3)
    while moment > start:
        found.append(Tick(int((moment - start).total_seconds() // 60), f"{timezone.localtime(moment):%H:%M}"))
        moment -= TICK
    return found[::-1]


def _summary(total: Counts) -> str:
    words = {"done": f"{total.done:,}", "failed": f"{total.failed:,}", "late": f"{total.late:,}"}
    return gettext("The last 24 hours: %(done)s done, %(failed)s failed, %(late)s started late.") % words


def _peak(found: Activity) -> str:
    if not found.minutes:
        return gettext("Nothing has ended.")
    minute, counts = max(found.minutes.items(), key=lambda each: each[1].done + each[1].failed)
    local = timezone.localtime(minute)
    words = {"minute": f"{local:%H:%M}", "count": f"{counts.done + counts.failed:,}"}
    return gettext("Most in one minute: %(count)s, at %(minute)s.") % words


def _hour_line(hour: datetime, counts: Counts) -> HourLine:
    local = timezone.localtime(hour)
    return HourLine(f"{local:%a %H:%M}", f"{counts.done:,}", f"{counts.failed:,}", f"{counts.late:,}")
