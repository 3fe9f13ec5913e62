"""Where workers begin to look for due rows, when the beginning of the index is full of what is over.

While somebody holds a snapshot open (a long report, a backup, a forgotten shell), the database cannot clean up what has
been written since: each row that came and went leaves dead entries at the low end of the index on ``wake_at``, and each
look for the first due row, and each claim, would step over all of them. So where looks take long, one
remembers where the first living row was, and the next ones begin there.

What becomes due further back than that (the transaction that wrote it committed late, or another machine's clock is
behind) is found by the next look at everything, some seconds later: nothing is passed by for longer. Looks that are
quick remember nothing, and only workers that go by the wall clock take part.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.utils import timezone

from .models import Wakeable
from .registry import due_times, wakeables

DEAR = 0.01
"""After two looks at everything in a row that took longer than this many seconds each ..."""
REST = 5.0
"""... for this many seconds at least, ..."""
SHARE = 20
"""... and for this many times as long as the second took, ..."""
LONGEST = 60.0
"""... but never longer than this, the next looks begin where the first living row was."""
SLACK = timedelta(seconds=5)
"""So far back of the moment of a look they begin at the latest: what is just being committed is seen at once."""


@dataclass(frozen=True, slots=True)
class DueScan:
    """What one look has found: from where on to look, and until when that is enough."""

    was_dear: bool = False
    until: float = 0.0
    since: Mapping[type[Wakeable], datetime] = field(default_factory=dict)


_last = DueScan()


def look() -> dict[type[Wakeable], datetime]:
    """Return for each Wakeable model when its next row is due, as ``due_times`` does; of maintenance, too."""
    global _last
    started, now, last = time.monotonic(), timezone.now(), _last
    partial = started < last.until
    times = due_times(last.since if partial else {}, maintenance=True)
    latest = now - SLACK
    if partial:
        _last = DueScan(True, last.until, {model: min(times.get(model, latest), latest) for model in last.since})
        return times
    took = time.monotonic() - started
    if took <= DEAR or not last.was_dear:  # once may have been the machine's mood
        _last = DueScan(took > DEAR)
    else:
        rest = min(max(REST, took * SHARE), LONGEST)
        since = {model: min(times.get(model, latest), latest) for model in wakeables()}
        _last = DueScan(True, time.monotonic() + rest, since)
    return times


def beginning(model: type[Wakeable]) -> datetime | None:
    """Return from which ``wake_at`` on a claim needs to look; None: from the very first."""
    return _last.since.get(model)


def forget() -> None:
    """Look at everything next time: for tests."""
    global _last
    _last = DueScan()
