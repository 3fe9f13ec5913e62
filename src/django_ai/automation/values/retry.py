"""``Retry``, ``RetryAfter`` and ``GiveUp``: whether, how often and after which pause a failed attempt is retried.

Pure arithmetic: the row counts the attempts. ``Retry`` is the policy that a decorator declares. User code that knows
better raises ``RetryAfter`` (the other side has said when) or ``GiveUp`` (no retry can help).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..exceptions import AutomationError, DefinitionError
from .clock import aware
from .digests import digest

DEFAULT_MAX_DELAY = timedelta(minutes=5)
MIN_UNCOUNTED_DELAY = timedelta(seconds=1)
"""The shortest pause after a ``RetryAfter`` that uses up no attempt: an endless loop must not occupy a worker."""

ExceptionClasses = type[Exception] | Sequence[type[Exception]]
"""One exception class, or several."""


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often to retry a failed attempt, with exponential backoff.

    Code that raises ``RetryAfter`` or ``GiveUp`` decides itself, whatever ``retry_on`` and ``give_up_on`` say.

    Args:
        max_attempts: Number of all attempts, the first one included: a whole number of 1 or more. Default 3.
        base_delay: Pause after the first failure, as a timedelta of zero or more. Default 1 s.
        max_delay: Longest pause, as a timedelta. Default 5 min, or ``base_delay`` if that is longer.
        backoff_factor: By how much each pause is longer than the one before, a number of 1 or more. Default 2.
        retry_on: Retry only these exceptions and their subclasses, as a class or a tuple of classes; any other fails at
            once. Default: retry every exception.
        give_up_on: Do not retry these exceptions and their subclasses, also where ``retry_on`` includes them, as a
            class or a tuple of classes. Default: none.
        jitter: By which share a pause may be shorter, a number from 0 to 1, so that rows that failed together are not
            retried together. With 0.2 a pause of 10 s takes 8 to 10 s; with 1 it takes 0 to 10 s. The share is a digest
            of the row and the attempt: random between rows, and always the same for one attempt. Default 0.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        Five attempts, with pauses of up to 10, 30, 90 and 270 seconds, of errors that may pass::

            Retry(
                max_attempts=5,
                base_delay=timedelta(seconds=10),
                backoff_factor=3,
                jitter=0.2,
                retry_on=(ConnectionError, TimeoutError),
            )
    """

    max_attempts: int = 3
    base_delay: timedelta = timedelta(seconds=1)
    max_delay: timedelta = DEFAULT_MAX_DELAY
    backoff_factor: float = 2
    retry_on: ExceptionClasses | None = None
    give_up_on: ExceptionClasses = ()
    jitter: float = 0

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
        if type(self.jitter) not in (int, float) or not 0 <= self.jitter <= 1:
            raise DefinitionError(
                f"Retry(jitter={self.jitter!r}): give a number from 0 to 1, the share by which a pause may be shorter."
            )
        self._check_classes()

    def _check_classes(self) -> None:
        given_up = _exception_classes("give_up_on", self.give_up_on)
        object.__setattr__(self, "give_up_on", given_up)
        if self.retry_on is None:
            return
        retried = _exception_classes("retry_on", self.retry_on)
        object.__setattr__(self, "retry_on", retried)
        if not retried:
            raise DefinitionError(
                "Retry(retry_on=()): name the exceptions to retry. To retry none, give max_attempts=1; to retry all, "
                "leave retry_on= out."
            )
        useless = [each.__name__ for each in retried if issubclass(each, given_up)]
        if useless:
            raise DefinitionError(
                f"Retry(retry_on=..., give_up_on=...): {', '.join(useless)} would never be retried, because "
                "give_up_on= names it or a base class of it. Remove it from one of them."
            )

    def retries(self, error: Exception) -> bool:
        """Return whether ``error`` is an exception that this policy retries.

        Args:
            error: What the attempt raised.

        Returns:
            False if ``give_up_on`` names its class or a base of it, or if ``retry_on`` names neither.

        Example:
            A missing file is no error that passes::

                retry = Retry(retry_on=OSError, give_up_on=FileNotFoundError)
                assert retry.retries(TimeoutError()) and not retry.retries(FileNotFoundError())
        """
        if isinstance(error, _classes_of(self.give_up_on)):
            return False
        return self.retry_on is None or isinstance(error, _classes_of(self.retry_on))

    def delay(self, attempt: int, key: str = "") -> timedelta | None:
        """Return the pause after a failed attempt.

        Args:
            attempt: Number of the attempt that failed, counted from 1.
            key: What ``jitter`` is computed from besides the attempt: the ``idempotency_key`` of the run, callback or
                handler execution. Default: an empty string. Without jitter it has no effect.

        Returns:
            A timedelta, or None if that was the last attempt. With ``jitter`` it is between ``1 - jitter`` times the
            pause without jitter, and that pause.

        Example:
            The second attempt of the default has failed::

                assert Retry().delay(2) == timedelta(seconds=2)
        """
        if attempt >= self.max_attempts:
            return None
        longest = max(self.max_delay, self.base_delay)
        try:
            delay = min(self.base_delay * self.backoff_factor ** (attempt - 1), longest)
        except OverflowError:
            delay = longest
        return delay * (1 - self.jitter * _share(key, attempt)) if self.jitter else delay


def _share(key: str, attempt: int) -> float:
    """Return a number from 0 to 1 that is evenly distributed over rows and attempts, and the same for each call."""
    found = digest("jitter", key, attempt)
    return int(found, 16) / int("f" * len(found), 16)


def _exception_classes(name: str, value: object) -> tuple[type[Exception], ...]:
    """Return ``value`` as a tuple. Raises ``DefinitionError`` if it is not an exception class or several."""
    classes = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
    for each in classes:
        if not isinstance(each, type) or not issubclass(each, Exception):
            raise DefinitionError(
                f"Retry({name}={value!r}): {each!r} is not a subclass of Exception. Give exception classes, as in "
                f"{name}=(ConnectionError, TimeoutError)."
            )
    return classes


def _classes_of(value: ExceptionClasses) -> tuple[type[Exception], ...]:
    return value if isinstance(value, tuple) else ()  # ``__post_init__`` has made it a tuple


class RetryAfter(AutomationError):
    """Raise it in a step, callback or handler to be retried at a time that the code knows: an HTTP 429 says when.

    The database writes of the attempt are rolled back, and the changes of the Context are kept, as for any exception.
    The attempt is not counted, unless ``counts`` is True; ``deadline=`` limits how long a run may take in all. The
    pause is at least a second if the attempt is not counted. ``jitter`` has no effect on it.

    Args:
        when: How long to wait, as a timedelta (zero or less: retry at once), or when to retry, as a datetime with a
            time zone (one in the past: at once).
        reason: Why, as a string for the operator. Default: none.
        counts: Count the attempt. If it was the last one that ``Retry`` allows, it has failed. Default False.

    Raises:
        DefinitionError: If ``when`` is neither a timedelta nor a datetime.
        NaiveDatetimeError: If ``when`` is a datetime without a time zone.

    Example:
        A mail service says that it gets too many requests::

            response = httpx.post(url, json=letter)
            if response.status_code == 429:
                raise RetryAfter(timedelta(seconds=int(response.headers["Retry-After"])), "HTTP 429")
    """

    is_retryable = True
    is_expected = True

    def __init__(self, when: timedelta | datetime, reason: str = "", *, counts: bool = False) -> None:
        if not isinstance(when, timedelta | datetime):
            raise DefinitionError(
                f"RetryAfter({when!r}): give a timedelta, as in RetryAfter(timedelta(seconds=30)), or a datetime with "
                "a time zone."
            )
        super().__init__(str(reason) or "The code asked to be retried later.")
        self.when = aware(when, "RetryAfter(...)") if isinstance(when, datetime) else when
        self.counts = bool(counts)

    def delay(self, now: datetime) -> timedelta:
        """Return how long to wait from ``now`` on."""
        asked = self.when if isinstance(self.when, timedelta) else self.when - now
        return max(asked, timedelta(0) if self.counts else MIN_UNCOUNTED_DELAY)


class GiveUp(AutomationError):
    """Raise it in a step, callback or handler to fail at once, without another attempt.

    The database writes of the attempt are rolled back, and the changes of the Context are kept, as for any exception.
    (``return fail(...)`` in a step keeps both.) The run enters its ``@on_fail``. An agent lives on after a handler has
    failed.

    Args:
        reason: Why no retry can help, as a string for the operator. Default: none.

    Example:
        A card that was reported stolen stays refused::

            if answer.code == "stolen_card":
                raise GiveUp("The bank has blocked the card.")
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(str(reason) or "The code gave up.")
