"""``Debounce`` and ``Batch``: which events are handed to one run or call together. Pure values; ``events/windows``
collects the events.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..exceptions import DefinitionError


@dataclass(frozen=True, slots=True)
class Debounce:
    """Wait until no more events come, then handle all of them at once.

    The first event opens a window. Each further one moves its end; when ``period`` has passed without another, one run
    (or call) gets all the events in their order.

    Args:
        period: How long to wait after each event, as a positive timedelta.
        key: A window for each value: an expression on the event's entity or payload, such as
            ``"{{ instance.customer_id }}"`` or ``"{{ payload.customer }}"``. Default: one window for all events.
        max_wait: Longest time from the first event to the end of the window, as a timedelta of ``period`` or more.
            Default: no limit.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        Index a product once, a minute after its last change, and every ten minutes while it keeps changing::

            @on_event(
                "product_changed",
                debounce=Debounce(timedelta(minutes=1), key="{{ instance.pk }}", max_wait=timedelta(minutes=10)),
            )
            def index(events):
                search.index(events[-1].entity)
    """

    period: timedelta
    key: str | None = None
    max_wait: timedelta | None = None

    def __post_init__(self) -> None:
        _check_duration(self, "period", self.period)
        if self.max_wait is not None:
            _check_duration(self, "max_wait", self.max_wait)
            if self.max_wait < self.period:
                raise DefinitionError(f"{self!r}: max_wait= must not be shorter than the period.")
        check_key(self, self.key)


@dataclass(frozen=True, slots=True)
class Batch:
    """Collect events and handle them together: as soon as there are ``size`` of them, or after ``timeout``.

    Args:
        size: How many events one run (or call) gets at most: a whole number of 1 or more.
        timeout: How long after the first event the others are waited for, as a positive timedelta.
        key: Collect each value separately, as in ``Debounce``. Default: all events together.

    Raises:
        DefinitionError: If a value is invalid.

    Example:
        Send readings to a partner by the hundred, a minute late at most::

            @on_event("meter_read", batch=Batch(size=100, timeout=timedelta(minutes=1)))
            def send(events):
                partner.send([event.payload for event in events])
    """

    size: int
    timeout: timedelta
    key: str | None = None

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise DefinitionError(f"Batch(size={self.size!r}): give a whole number of 1 or more.")
        _check_duration(self, "timeout", self.timeout)
        check_key(self, self.key)


Window = Debounce | Batch


def declared_window(what: str, debounce: Debounce | None, batch: Batch | None) -> Window | None:
    """Return the window that a definition declares, if any. Raises ``DefinitionError``."""
    for argument, expected, given in (("debounce", Debounce, debounce), ("batch", Batch, batch)):
        if given is not None and not isinstance(given, expected):
            raise DefinitionError(f"{what}: {argument}={given!r} must be a {expected.__name__}(...).")
    if debounce is not None and batch is not None:
        raise DefinitionError(f"{what}: debounce= and batch= contradict each other; give one of them.")
    return debounce or batch


def _check_duration(owner: Any, name: str, value: Any) -> None:
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise DefinitionError(f"{type(owner).__name__}({name}={value!r}): give a positive timedelta.")


def check_key(owner: Any, key: Any) -> None:
    """Raise ``DefinitionError`` unless ``key`` is None or a string with an expression."""
    if key is not None and (not isinstance(key, str) or "{{" not in key):
        raise DefinitionError(
            f"{type(owner).__name__}(key={key!r}): a key is a string with an expression, as in "
            '"{{ instance.customer_id }}" or "{{ payload.customer }}".'
        )
