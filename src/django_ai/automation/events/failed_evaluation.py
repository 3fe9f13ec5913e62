"""``FailedEvaluation``: an exception that a condition, a name or a payload function raised."""

from __future__ import annotations

from dataclasses import dataclass

from ..queues.signals import attempt_finished
from ..queues.wakeable import Wakeable


@dataclass(frozen=True, slots=True)
class FailedEvaluation:
    """What a function of the project raised that a row asked, and after how many seconds. ``tell`` says so, to those
    who hear of attempts: that is what it was."""

    error: Exception
    seconds: float

    def report(self, row: Wakeable) -> None:
        attempt_finished.send_robust(type(row), row=row, error=self.error, seconds=self.seconds)
