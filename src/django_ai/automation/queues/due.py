"""Where to start scanning for due rows, when dead entries fill the beginning of the index.

While a transaction holds an old snapshot (a long report, a backup, a forgotten shell), the database cannot clean up
what was written since. Each row that was due and performed leaves dead entries at the low end of the index on
``wake_at``, and each query for the first due row, and each claim, would scan all of them. So after slow scans a process
remembers where the first live row was, and starts the next scans there.

A row can become due further back (the transaction that wrote it committed late, or the clock of another machine is
behind), or in a lane that has had none before. The next full scan finds it, some seconds later, so no row is skipped
for longer. Fast scans remember nothing, and only workers that use the wall clock take part."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from django.utils import timezone

from .lanes import Lane, are_used, declared_lanes
from .pauses import NOTHING, Pauses, current
from .registry import due_times, wakeables
from .wakeable import Wakeable

SLOW_SCAN_SECONDS = 0.01
"""After two full scans in a row that each took longer than this ..."""
MIN_SKIP_SECONDS = 5.0
"""... scans start at the first live row for at least this many seconds, ..."""
SKIP_SECONDS_PER_SCAN_SECOND = 20
"""... and for this many times the duration of the second scan, ..."""
MAX_SKIP_SECONDS = 60.0
"""... but never for longer than this."""
COMMIT_MARGIN = timedelta(seconds=5)
"""A scan starts at least this long before the last one, so that it finds rows that were being committed then."""
MAX_LANES = 100
"""With more lanes than this every scan is a full one: the query for known lanes would be too long."""


@dataclass(frozen=True, slots=True)
class DueScan:
    """What the last scan found: whether it was slow, where the next scans start, until when they may, and what was
    paused."""

    was_slow: bool = False
    until: float = 0.0
    since: Mapping[Lane, datetime] = field(default_factory=dict)
    pauses: Pauses = NOTHING


_last = DueScan()


def next_due() -> dict[Lane, datetime]:
    """Return for each lane, including that of maintenance, when its next row is due, as ``due_times`` does."""
    global _last
    started, now, last = time.monotonic(), timezone.now(), _last
    is_partial = started < last.until and last.pauses == current()
    times = due_times(last.since if is_partial else {}, maintenance=True)
    latest = now - COMMIT_MARGIN
    if is_partial:
        since = {lane: min(times.get(lane, latest), latest) for lane in last.since}
        # After a pause, the rows of a lane that was paused are due further back: the next scan is a full one.
        _last = DueScan(True, last.until, since, last.pauses)
        return times
    took = time.monotonic() - started
    if took <= SLOW_SCAN_SECONDS or not last.was_slow:  # a single slow scan may be chance
        _last = DueScan(took > SLOW_SCAN_SECONDS)
    else:
        skip_seconds = min(max(MIN_SKIP_SECONDS, took * SKIP_SECONDS_PER_SCAN_SECOND), MAX_SKIP_SECONDS)
        known = {lane for model in wakeables() for lane in (Lane(model), *declared_lanes(model))}
        known |= {lane for lane in times if lane.model in wakeables()}
        since = {lane: min(times.get(lane, latest), latest) for lane in known if len(known) <= MAX_LANES}
        _last = DueScan(True, time.monotonic() + skip_seconds, since, current())
    return times


@dataclass(frozen=True, slots=True)
class KnownDue:
    """Lanes that are due, and since when, as the caller of ``drain`` knows it. ``is_complete``: from a look just now.
    If not, doorbells named them: other lanes may be due, too, and a pause may have begun."""

    times: Mapping[Lane, datetime]
    is_complete: bool


class DuePoller(Protocol):
    """What finds due rows, calls ``drain``, and then sleeps: the two tell each other what they have just read."""

    def take_known(self) -> KnownDue | None:
        """Return what is known to be due, once."""

    def hears_more(self) -> bool:
        """Return whether it is known that more has become due while ``drain`` performed what it had claimed."""

    def before_look(self) -> None:
        """``drain`` is about to read what is due."""

    def note_idle(self, times: Mapping[Lane, datetime]) -> None:
        """``drain`` has just read that nothing is due, and returns. ``times``: when the next rows are due."""


class ForetoldDue:
    """The ``DuePoller`` of a task queue's worker: it knows what the names in its doorbell tell, and notes nothing."""

    def __init__(self, doorbells: Collection[str]) -> None:
        self._names = doorbells

    def take_known(self) -> KnownDue | None:
        lanes, now = lanes_of(self._names), timezone.now()
        return KnownDue(dict.fromkeys(lanes, now), is_complete=False) if lanes and current() == NOTHING else None

    def hears_more(self) -> bool:
        return False

    def before_look(self) -> None:
        pass

    def note_idle(self, times: Mapping[Lane, datetime]) -> None:
        pass


def lanes_of(doorbells: Collection[str]) -> list[Lane] | None:
    """Return the lanes that doorbells of these names ring for; None where the names do not tell the lanes."""
    found = []
    for name in doorbells:
        models = [model for model in wakeables() if model.kind == name]
        if not models or any(map(are_used, models)):
            return None
        found += [Lane(model) for model in models]
    return found


def doorbells_of(lanes: Collection[Lane]) -> list[str]:
    """Return names of doorbells that tell ``lanes``; those that no name tells are left out."""
    return [lane.name for lane in lanes if lanes_of([lane.name]) == [lane]]


def scan_start(model: type[Wakeable], queue: str = "", priority: int = 0) -> datetime | None:
    """Return the ``wake_at`` at which a claim of this lane may start; None: at the beginning of the index."""
    return _last.since.get(Lane(model, queue, priority))


def reset() -> None:
    """Start with a full scan next time (tests)."""
    global _last
    _last = DueScan()
