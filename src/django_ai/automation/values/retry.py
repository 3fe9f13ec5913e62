"""``Retry``: how often and after which backoff to retry. Pure arithmetic: the row counts the attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ..exceptions import DefinitionError

DEFAULT_MAX_DELAY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often to retry a failed attempt, with exponential backoff.

    Args:
        max_attempts: Number of all attempts, the first one included: a whole number of 1 or more. Default 3.
        base_delay: Pause after the first failure, as a timedelta of zero or more. Default 1 s.
        max_delay: Longest pause, as a timedelta. Default 5 min, or ``base_delay`` if that is longer.
        backoff_factor: By how much each pause is longer than the one before, a number of 1 or more. Default 2.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        Five attempts, with pauses of 10, 30, 90 and 270 seconds::

            Retry(max_attempts=5, base_delay=timedelta(seconds=10), backoff_factor=3)
    """

    max_attempts: int = 3
    base_delay: timedelta = timedelta(seconds=1)
    max_delay: timedelta = DEFAULT_MAX_DELAY
    backoff_factor: float = 2

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise DefinitionError(
                f"Retry(max_attempts={self.max_attempts!r}): give a whole number of attempts, 1 or more "
                "(the first attempt counts)."
            )
        for name in ("base_delay", "max_delay"):
            value = getattr(self, name)
            if not isinstance(value, timedelta) or value < timedelta(0):
                raise DefinitionError(f"Retry({name}={value!r}): give a timedelta of zero or more.")
        if self.base_delay > self.max_delay != DEFAULT_MAX_DELAY:
            raise DefinitionError(
                f"Retry(base_delay={self.base_delay!r}, max_delay={self.max_delay!r}): max_delay= must not be shorter "
                "than base_delay=."
            )
        if not isinstance(self.backoff_factor, int | float) or not 1 <= self.backoff_factor < float("inf"):
            raise DefinitionError(f"Retry(backoff_factor={self.backoff_factor!r}): give a number of 1 or more.")

    def delay(self, attempt: int) -> timedelta | None:
        """Return the pause after a failed attempt.

        Args:
            attempt: Number of the attempt that failed, counted from 1.

        Returns:
            A timedelta, or None if that was the last attempt.

        Example:
            The second attempt of the default has failed::

                assert Retry().delay(2) == timedelta(seconds=2)
        """
        if attempt >= self.max_attempts:
            return None
        longest = max(self.max_delay, self.base_delay)
        try:
            return min(self.base_delay * self.backoff_factor ** (attempt - 1), longest)
        except OverflowError:
            return longest
