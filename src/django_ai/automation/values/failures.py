"""A failed attempt: its error message, and when it is retried. Pure, for the ``decide`` of each kind of run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ..exceptions import AutomationError
from .retry import Retry


@dataclass(frozen=True, slots=True)
class Raised:
    """The result of an attempt that ended with an exception."""

    error: Exception
    trace: str
    data: str | None = None
    """The Context as the code left it; None if it cannot be stored, or does not exist yet."""
    note: str = ""
    """Why the Context cannot be stored."""

    @property
    def is_final(self) -> bool:
        """Whether another attempt would fail in the same way: the package is used incorrectly."""
        return isinstance(self.error, AutomationError) and not self.error.is_retryable

    @property
    def text(self) -> str:
        head = f"{type(self.error).__name__}: {self.error}\n\n" if self.is_final else ""
        return f"{head}{self.trace}{self.note}"

    def delay(self, retry: Retry, attempt: int) -> timedelta | None:
        """Return how long to wait before the next attempt, or None if ``attempt`` (from 1) was the last."""
        return None if self.is_final else retry.delay(attempt)
