"""Where to start scanning for due rows, when dead entries fill the beginning of the index.

While a transaction holds an old snapshot (a long report, a backup, a forgotten shell), the database cannot clean up
what was written since. Each row that was due and performed leaves dead entries at the low end of the index on
``wake_at``, and each query for the first due row, and each claim, would scan all of them. So after slow scans a process
remembers where the first live row was, and starts the next scans there.

A row can become due further back (the transaction that wrote it committed late, or the clock of another machine is
behind). The next full scan finds it, some seconds later, so no row is skipped for longer. Fast scans remember nothing,
and only workers that use the wall clock take part.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.utils import timezone

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


@dataclass(frozen=True, slots=True)
class DueScan:
    """What the last scan found: whether it was slow, where the next scans start, and until when they may."""

    was_slow: bool = False
    until: float = 0.0
    since: Mapping[type[Wakeable], datetime] = field(default_factory=dict)


_last = DueScan()


def next_due() -> dict[type[Wakeable], datetime]:
    """Return for each Wakeable model, including maintenance, when its next row is due, as ``due_times`` does."""
    global _last
    started, now, last = time.monotonic(), timezone.now(), _last
    is_partial = started < last.until
    times = due_times(last.since if is_partial else {}, maintenance=True)
    latest = now - COMMIT_MARGIN
    if is_partial:
        _last = DueScan(True, last.until, {model: min(times.get(model, latest), latest) for model in last.since})
        return times
    took = time.monotonic() - started
    if took <= SLOW_SCAN_SECONDS or not last.was_slow:  # a single slow scan may be chance
        _last = DueScan(took > SLOW_SCAN_SECONDS)
    else:
        skip_seconds = min(max(MIN_SKIP_SECONDS, took * SKIP_SECONDS_PER_SCAN_SECOND), MAX_SKIP_SECONDS)
        since = {model: min(times.get(model, latest), latest) for model in wakeables()}
        _last = DueScan(True, time.monotonic() + skip_seconds, since)
    return times


def scan_start(model: type[Wakeable]) -> datetime | None:
    """Return the ``wake_at`` at which a claim may start; None: at the beginning of the index."""
    return _last.since.get(model)


def reset() -> None:
    """Start with a full scan next time (tests)."""
    global _last
    _last = DueScan()
