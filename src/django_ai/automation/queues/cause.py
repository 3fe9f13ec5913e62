"""The chain of causes: what the code that runs now was started by, and how deep the chain is.

A worker sets the cause around user code; whatever that code saves or sends carries it on. That is how an event storm
is seen, and how the admin can say why something happened. Outside a worker there is no cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.utils import timezone

from ..conf import conf
from ..exceptions import EventStormError

REST = timedelta(seconds=1)
"""A chain ends where so much time lies between a cause and what it causes, because that was planned so far ahead, was
waited for, or took as long: what comes round once a minute is no storm."""


def rested(delay: timedelta | None) -> bool:
    """Return whether a chain has come to rest by ``delay``, for instance before another attempt."""
    return delay is not None and delay >= REST


@dataclass(slots=True)
class Flow:
    """The run that is at work: what may own something. ``namespace``: of which events, where its class names one.
    ``holds_claims``: it has come to own some just now."""

    kind: str
    pk: int
    namespace: str | None = None
    holds_claims: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """What runs now: ``label`` names the row (``"workflow:12:step"``), ``links`` counts its chain of causes when it
    began, ``key`` is its idempotency key, ``flow`` the run that it is a part of, if it is."""

    label: str
    links: int
    key: str
    flow: Flow | None = None
    began: datetime = field(default_factory=lambda: timezone.now())

    @property
    def depth(self) -> int:
        """How deep in its chain is what this causes now. Who has worked for a second or more has not just passed on
        what it was given: a chain of such links is slow, and no storm."""
        return 1 if timezone.now() - self.began >= REST else self.links


_current: ContextVar[Cause | None] = ContextVar("automation_cause", default=None)


@contextmanager
def causing(cause: Cause) -> Iterator[None]:
    token = _current.set(cause)
    try:
        yield
    finally:
        _current.reset(token)


def current_cause() -> Cause | None:
    return _current.get()


def next_depth(what: str) -> int:
    """Return how deep in its chain ``what`` is if it begins now. Raises ``EventStormError`` beyond ``MAX_DEPTH``."""
    cause = _current.get()
    if cause is None:
        return 0
    if cause.depth > conf().MAX_DEPTH:
        raise EventStormError(
            f"{what} would be number {cause.depth} in a chain of causes without a rest (last by {cause.label}); "
            f"AUTOMATION['MAX_DEPTH'] is {conf().MAX_DEPTH}. Break the circle, or let it sleep in between."
        )
    return cause.depth


def idempotency_key() -> str:
    """Return the stable key of what runs now, for calls to the outside.

    It is the same for every try of one step visit, callback or handler, and differs between them; give it to a payment
    provider or a mail service so that a second try is recognised. Raises ``RuntimeError`` outside a step, callback or
    handler.
    """
    cause = _current.get()
    if cause is None:
        raise RuntimeError("idempotency_key() has a value only inside a step, an automation or a handler.")
    return cause.key
