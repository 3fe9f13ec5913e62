"""``Upkeep``: when the periodic tasks are due in a runtime that has no schedules of its own.

The workers of ``automation_worker``, the clock of a Celery worker and ``automation_clock`` each have one. There may be
many of them: the periodic tasks are idempotent and find nothing to do a second time, so two that do it at once are
only a waste; each waits a random part of its period more, so that they seldom do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MINUTE = 60.0


@dataclass
class Chore:
    """A periodic task: when it is due first and again, in seconds. Some jitter is added to each."""

    task: Callable[[], object]
    first: float
    every: float
    due: float = field(init=False, default=0.0)

    def plan(self, seconds: float) -> None:
        self.due = time.monotonic() + seconds * random.uniform(1, 1.3)


class Upkeep:
    """Says when to call ``look_behind`` (what ``tasks.poll_due`` does: at once and each five minutes, because a fresh
    process may run new code) and ``clean`` (what ``tasks.cleanup_old`` does: after ten minutes and each day, because a
    process may not live for a day)."""

    def __init__(self, look_behind: Callable[[], object], clean: Callable[[], object]) -> None:
        self._chores = [
            Chore(look_behind, first=0, every=5 * MINUTE),
            Chore(clean, first=10 * MINUTE, every=24 * 60 * MINUTE),
        ]
        for chore in self._chores:
            chore.plan(chore.first)

    def run(self) -> None:
        """Do what is due now. Raises what it raises; that task is then due again in half a minute."""
        for chore in self._chores:
            if chore.due <= time.monotonic():
                chore.plan(MINUTE / 2)
                chore.task()
                chore.plan(chore.every)
