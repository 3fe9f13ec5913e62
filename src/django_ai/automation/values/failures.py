"""A failed attempt: its error message, and when it is retried. Pure, for the ``decide`` of each kind of run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..exceptions import AutomationError
from .retry import Retry, RetryAfter


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """The next attempt: after which pause, and whether the failed attempt is counted."""

    delay: timedelta
    counts: bool = True


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
        """Whether no other attempt is wanted (``GiveUp``), or would fail in the same way, because the package is used
        incorrectly."""
        return isinstance(self.error, AutomationError) and not self.error.is_retryable

    @property
    def text(self) -> str:
        head = f"{type(self.error).__name__}: {self.error}\n\n" if self.is_final else ""
        return f"{head}{self.trace}{self.note}"

    def next_attempt(self, retry: Retry, attempt: int, key: str, now: datetime) -> NextAttempt | None:
        """Return when another attempt follows, or None if none does.

        ``attempt``: the number of the attempt that failed, from 1. ``key``: the row's idempotency key, for the jitter.
        ``now``: when it failed.
        """
        if isinstance(self.error, RetryAfter):
            is_last = self.error.counts and attempt >= retry.max_attempts
            return None if is_last else NextAttempt(self.error.delay(now), self.error.counts)
        if self.is_final or not retry.retries(self.error):
            return None
        delay = retry.delay(attempt, key)
        return None if delay is None else NextAttempt(delay)
