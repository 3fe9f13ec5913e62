"""``ErrorCollector``: what went wrong while a time machine is on, and whether rows are performed in circles.

It listens to the life-cycle signals of the engine. What it hears is kept for ``TimeMachine.errors``, and once for the
next call that is to raise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from django.utils import timezone

from ..exceptions import AutomationError
from ..queues.models import Wakeable
from ..queues.signals import attempt_finished, perform_failed, row_parked

TRIES = 10_000
"""So often may one row be tried without time moving, and so many rounds may there be; ten times that for all rows."""


class ParkedRowError(AutomationError, AssertionError):
    """A row was parked: it needs a person."""


class ErrorCollector:
    """Hears of attempts, failures and parked rows, from ``start`` until ``stop``."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._fresh: list[Exception] = []
        self._failed: set[tuple[type[Wakeable], Any]] = set()
        self._tries: Counter[tuple[type[Wakeable], Any]] = Counter()
        self._rounds = 0

    def start(self) -> None:
        attempt_finished.connect(self._attempted)
        perform_failed.connect(self._not_performed)
        row_parked.connect(self._parked)

    def stop(self) -> None:
        attempt_finished.disconnect(self._attempted)
        perform_failed.disconnect(self._not_performed)
        row_parked.disconnect(self._parked)

    def moved(self) -> None:
        """Time has moved: what is tried again is tried at another moment."""
        self._tries.clear()
        self._rounds = 0

    def count_round(self, due_rows: Callable[[], Iterable[Wakeable]]) -> None:
        """Raise ``AutomationError`` when rows are performed at this moment without end."""
        self._rounds += 1
        most = self._tries.most_common(1)
        if max(self._rounds, self._tries.total() // 10, *(tries for _, tries in most)) < TRIES:
            return
        rows = {f"{row._meta.label} {row.pk} ({row})" for row in due_rows()}
        rows |= {f"{model._meta.label} {pk}, which was tried {tries} times" for (model, pk), tries in most}
        self.moved()
        raise AutomationError(
            f"At {timezone.now().isoformat()} there is no end of what is due, and time cannot go on. Look at: "
            f"{'; '.join(sorted(rows))}. A step that goes to itself, or sleeps for no time at all, does this."
        )

    def settle(self, *, raising: bool) -> None:
        """Forget what went wrong since the last time, or raise it: one error as it is, several as a group."""
        fresh, self._fresh = self._fresh, []
        self._failed.clear()
        if not raising or not fresh:
            return
        if len(fresh) == 1:
            raise fresh[0]
        raise ExceptionGroup("Functions of the project failed while time passed.", fresh)

    def _attempted(self, sender: type[Wakeable], row: Wakeable, error: Exception | None, **kwargs: Any) -> None:
        self._tries[sender, row.pk] += 1
        if error is not None:
            self._keep(row, error)

    def _not_performed(self, sender: type[Wakeable], row: Wakeable, error: Exception, **kwargs: Any) -> None:
        self._keep(row, error)

    def _keep(self, row: Wakeable, error: Exception) -> None:
        error.add_note(f"This happened to {row}, at {timezone.now().isoformat()}.")
        self.errors.append(error)
        self._fresh.append(error)
        self._failed.add((type(row), row.pk))

    def _parked(self, sender: type[Wakeable], row: Wakeable, reason: str, **kwargs: Any) -> None:
        # Parked by the error of its own attempt: that one says more.
        if (sender, row.pk) not in self._failed:
            self._fresh.append(ParkedRowError(f"{row} was parked at {timezone.now().isoformat()}: {reason}"))
