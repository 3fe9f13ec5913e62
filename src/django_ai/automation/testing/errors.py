"""``ErrorCollector``: the errors while a time machine is active, and whether rows are performed without end.

It listens to the life-cycle signals of the engine. Each error is kept for ``TimeMachine.errors``, and once for the next
call that raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from django.utils import timezone

from ..exceptions import AutomationError
from ..queues.signals import attempt_finished, perform_failed, row_parked
from ..queues.wakeable import Wakeable

MAX_ATTEMPTS_AT_ONE_MOMENT = 10_000
"""Limit for the attempts of one row and for the rounds, while time stands; ten times that for all rows."""


class ParkedRowError(AutomationError, AssertionError):
    """A row was parked: it needs an operator."""


class ErrorCollector:
    """Collects errors of attempts, other failures and parked rows, from ``start`` until ``stop``."""

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
        """Start counting anew: time has moved."""
        self._tries.clear()
        self._rounds = 0

    def count_round(self, due_rows: Callable[[], Iterable[Wakeable]]) -> None:
        """Raise ``AutomationError`` if rows are performed at this moment without end."""
        self._rounds += 1
        most = self._tries.most_common(1)
        if max(self._rounds, self._tries.total() // 10, *(tries for _, tries in most)) < MAX_ATTEMPTS_AT_ONE_MOMENT:
            return
        rows = {f"{row._meta.label} {row.pk} ({row})" for row in due_rows()}
        rows |= {f"{model._meta.label} {pk}, which was tried {tries} times" for (model, pk), tries in most}
        self.moved()
        raise AutomationError(
            f"At {timezone.now().isoformat()} rows are due without end, so time cannot move on. Look at: "
            f"{'; '.join(sorted(rows))}. The cause may be a step that returns goto to itself, or a sleep of zero."
        )

    def settle(self, *, raising: bool) -> None:
        """Forget the errors since the last call, or raise them: one as it is, several as a group."""
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
        # If the error of its own attempt parked it, that error says more.
        if (sender, row.pk) not in self._failed:
            self._fresh.append(ParkedRowError(f"{row} was parked at {timezone.now().isoformat()}: {reason}"))
