"""``FailedEvaluation``: an exception that a condition, a name or a payload function raised."""

from __future__ import annotations

from dataclasses import dataclass

from ..queues.signals import attempt_finished
from ..queues.wakeable import Wakeable


@dataclass(frozen=True, slots=True)
class FailedEvaluation:
    """What a function of the project raised during the evaluation of a row, and after how many seconds.

    ``report`` sends the ``attempt_finished`` signal: a failed evaluation is a failed attempt.
    """

    error: Exception
    seconds: float

    def report(self, row: Wakeable) -> None:
        attempt_finished.send_robust(type(row), row=row, error=self.error, seconds=self.seconds)
