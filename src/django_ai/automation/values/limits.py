"""``Concurrency``, ``Throttle``, ``RateLimit`` and ``Singleton``: how much of a workflow, callback or handler may run.

Pure values; ``queues/limits`` enforces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Literal, get_args

from ..exceptions import DefinitionError

OnConflict = Literal["skip", "cancel_running", "queue"]
MAX_KEY_LENGTH = 150


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many runs (or calls) may execute at the same time.

    A run holds a slot of the limit while one of its steps is executed, and none while it waits, sleeps or backs off
    before a retry. If all are held, it waits for its turn: those that have waited longest go first.

    Args:
        limit: How many may execute at the same time: a whole number of 1 or more.
        key: Count each value separately: an expression such as ``"{{ ctx.customer_id }}"`` on the Context of a workflow
            or agent, or ``"{{ instance.customer_id }}"`` on the entity of the event in ``@on_event``. Default: count
            all together.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        At most three imports of one customer, and twenty of all customers together::

            @workflow("import", concurrency=[Concurrency(3, key="{{ ctx.customer_id }}"), Concurrency(20)])
            class Import:
                ...
    """

    limit: int
    key: str | None = None

    def __post_init__(self) -> None:
        _check_limit(self, "limit", self.limit)
        _check_key(self, self.key)


@dataclass(frozen=True, slots=True)
class Throttle:
    """How many runs (or calls) may start per unit of time; the others start later, in the order in which they asked.

    It counts starts: the first step of a run, the first attempt of a call. Starts are spread evenly over the time
    (generic cell rate algorithm, as in ITU-T I.371).

    Args:
        limit: How many may start in ``per``: a whole number of 1 or more.
        per: The unit of time, as a positive timedelta.
        key: Count each value separately, as in ``Concurrency``. Default: count all together.
        burst: How many may start at once after a pause without starts: a whole number of 1 or more. Default 1.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        Ten requests a second to an external service::

            @on_event("invoice_paid", throttle=Throttle(10, per=timedelta(seconds=1)))
            def export(event):
                post_to_accounting(event.entity)
    """

    limit: int
    per: timedelta
    key: str | None = None
    burst: int = 1

    def __post_init__(self) -> None:
        _check_limit(self, "limit", self.limit)
        _check_per(self, self.per)
        _check_key(self, self.key)
        _check_limit(self, "burst", self.burst)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many runs (or calls) may start per unit of time; the others are skipped, and their rows say so.

    No interval of the length ``per`` has more than ``limit`` starts.

    Args:
        limit: How many may start in ``per``: a whole number of 1 or more.
        per: The unit of time, as a positive timedelta.
        key: Count each value separately, as in ``Concurrency``. Default: count all together.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        One reminder a day for each customer::

            @on_event("cart_left", rate_limit=RateLimit(1, per=timedelta(days=1), key="{{ instance.customer_id }}"))
            def remind(event):
                Reminder.objects.create(cart=event.entity)
    """

    limit: int
    per: timedelta
    key: str | None = None

    def __post_init__(self) -> None:
        _check_limit(self, "limit", self.limit)
        _check_per(self, self.per)
        _check_key(self, self.key)


@dataclass(frozen=True, slots=True)
class Singleton:
    """At most one run (or call) at a time, from its start to its end, also while it waits or sleeps.

    Args:
        key: One for each value, as in ``Concurrency``. Default: one altogether.
        on_conflict: What happens to a new one while another has not ended: ``"skip"`` ends the new one with the reason
            on its row, ``"cancel_running"`` cancels the other one, and ``"queue"`` lets the new one wait. Default
            ``"skip"``.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        A newer synchronisation of a shop replaces the one that runs::

            @event_workflow("shop_changed", singleton=Singleton("{{ ctx.shop_id }}", on_conflict="cancel_running"))
            class Synchronise:
                ...
    """

    key: str | None = None
    on_conflict: OnConflict = "skip"

    def __post_init__(self) -> None:
        _check_key(self, self.key)
        known = get_args(OnConflict)
        if self.on_conflict not in known:
            near = get_close_matches(str(self.on_conflict), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Write one of {', '.join(map(repr, known))}."
            raise DefinitionError(f"Singleton(on_conflict={self.on_conflict!r}): there is no such policy. {hint}")


Limit = Concurrency | Throttle | RateLimit | Singleton


def next_start(throttle: Throttle, now: datetime, next_at: datetime | None) -> tuple[datetime, datetime]:
    """Return when the next start may be, ``now`` at the earliest, and the ``next_at`` after it.

    ``next_at`` is the theoretical arrival time of the generic cell rate algorithm: when the next start would be if all
    were spread evenly. None: there was no start yet.
    """
    interval = throttle.per / throttle.limit
    expected = now if next_at is None else next_at
    start = max(now, expected - interval * (throttle.burst - 1))
    return start, max(start, expected) + interval


def _check_limit(owner: Any, name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise DefinitionError(f"{type(owner).__name__}({name}={value!r}): give a whole number of 1 or more.")


def _check_per(owner: Any, value: Any) -> None:
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise DefinitionError(f"{type(owner).__name__}(per={value!r}): give a positive timedelta.")


def _check_key(owner: Any, key: Any) -> None:
    what = f"{type(owner).__name__}(key={key!r})"
    if key is None:
        return
    if not isinstance(key, str) or "{{" not in key:
        raise DefinitionError(
            f'{what}: a key is a string with an expression: "{{{{ ctx.customer_id }}}}" for a workflow or handler, '
            '"{{ instance.customer_id }}" for @on_event.'
        )
    if len(key) > MAX_KEY_LENGTH:
        raise DefinitionError(f"{what}: a key has at most {MAX_KEY_LENGTH} characters.")


# -- what a definition declares ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeclaredLimit:
    """A limit of one definition. ``name`` identifies it within the definition, and is stored."""

    name: str
    limit: Limit

    def __str__(self) -> str:
        return f"{self.argument}={self.limit!r}"

    @property
    def argument(self) -> str:
        """The argument of the decorator: ``"concurrency"``."""
        return self.name.partition(" ")[0]

    @property
    def is_for_start(self) -> bool:
        """Whether only the start of a run needs it."""
        return isinstance(self.limit, Throttle | RateLimit)


@dataclass(frozen=True, slots=True)
class LimitKey:
    """The value of a limit's key for one row: canonical, and for display."""

    text: str = ""
    shown: str = ""


def declared_limits(
    what: str,
    *,
    concurrency: Concurrency | Sequence[Concurrency] | None = None,
    throttle: Throttle | None = None,
    rate_limit: RateLimit | None = None,
    singleton: Singleton | None = None,
) -> tuple[DeclaredLimit, ...]:
    """Return the limits of a definition, in the order in which a row acquires them.

    What may refuse the row comes first; the limits that it holds only while it executes come last, those with a key
    before those without, so that each key has its turn at the total. Raises ``DefinitionError``.
    """
    if concurrency is None:
        several: list[Any] = []
    else:
        several = list(concurrency) if isinstance(concurrency, list | tuple) else [concurrency]
        if not several:
            raise DefinitionError(f"{what}: concurrency= is empty; give a Concurrency(...), or leave it out.")
    found: list[DeclaredLimit] = []
    for argument, expected, given in (
        ("rate_limit", RateLimit, [rate_limit]),
        ("singleton", Singleton, [singleton]),
        ("throttle", Throttle, [throttle]),
        ("concurrency", Concurrency, several),
    ):
        for each in given:
            if each is not None and not isinstance(each, expected):
                raise DefinitionError(f"{what}: {argument}={each!r} must be a {expected.__name__}(...).")
        ordered = sorted((each for each in given if each is not None), key=lambda each: each.key is None)
        found += [DeclaredLimit(f"{argument} {each.key or ''}".strip(), each) for each in ordered]
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(f"{what}: concurrency= has two limits with the same key; keep the smaller one.")
    return tuple(found)
