"""``CurrentRun``: which step, handler or callback runs now, and the chain of causes that it is a link of.

``attempt`` sets it around user code, and nothing else says what is running: claims ask it for their owner, a run that
ends itself leaves its end there, and whatever the code saves or sends carries the cause on. That is how an event storm
is seen, and how the admin can say why something happened. Outside a worker there is no current run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.utils import timezone

from ..conf import conf
from ..exceptions import EventStormError

REST = timedelta(seconds=1)
"""A chain ends where so much time lies between a cause and what it causes, because that was planned so far ahead, was
waited for, or took as long: what comes round once a minute is no storm."""


def rested(delay: timedelta | None) -> bool:
    """Return whether a chain has come to rest by ``delay``, for instance before another attempt."""
    return delay is not None and delay >= REST


class Owner(NamedTuple):
    """A run of a workflow or an agent: what may own claims. ``namespace``: of which events, where its class names
    one."""

    kind: str
    pk: int
    namespace: str | None = None


@dataclass(slots=True)
class CurrentRun:
    """One attempt of user code, while it runs."""

    label: str
    """The row and the code: ``"workflow:12:step"``."""
    links: int
    """The length of its chain of causes when it began."""
    key: str
    """Its idempotency key."""
    owner: Owner | None = None
    """The run that it is a part of, if it is."""
    began: datetime = field(default_factory=lambda: timezone.now())
    view: Any = None
    """What the layer above lets the code see, while it is the project's own (see ``inside``)."""
    ending: tuple[Any, str] | None = None
    """The status with which the code has asked for the end of its own run, and why."""
    holds_claims: bool = False
    """Whether it has come to own claims."""

    @property
    def depth(self) -> int:
        """How deep in its chain is what this causes now. Who has worked for a second or more has not just passed on
        what it was given: a chain of such links is slow, and no storm."""
        return 1 if timezone.now() - self.began >= REST else self.links


_current: ContextVar[CurrentRun | None] = ContextVar("automation_current_run", default=None)


@contextmanager
def running(current: CurrentRun | None) -> Iterator[None]:
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def inside(view: Any) -> Iterator[CurrentRun]:
    """Let the project's code of the current run see ``view``, and end its own run, until the block is left."""
    current = _current.get()
    assert current is not None
    current.view, current.ending = view, None
    try:
        yield current
    finally:
        current.view = None


def current_cause() -> CurrentRun | None:
    """Return what runs now, as the cause of what it saves or sends."""
    return _current.get()


def current_run(kind: str) -> CurrentRun | None:
    """Return what runs now if that is the project's own code of a run of ``kind``: a step or a handler."""
    current = _current.get()
    if current is None or current.view is None or current.owner is None or current.owner.kind != kind:
        return None
    return current


def own_run_pk(kind: str) -> int | None:
    """Return the primary key of the run of ``kind`` whose code runs now, or None."""
    current = current_run(kind)
    return current.owner.pk if current is not None and current.owner is not None else None


def end_own_run(kind: str, pk: int, status: Any, reason: str) -> bool:
    """Return whether the code that runs now is that of the run ``pk``; the run then ends with its commit, and is not
    touched behind its worker's back."""
    current = current_run(kind)
    if current is None or own_run_pk(kind) != pk:
        return False
    current.ending = (status, reason)
    return True


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
    """Return the key of the current step visit, callback or handler execution, for external calls.

    The key is the same for all attempts of one execution, and different for any other. Give it to a payment provider or
    a mail service, so that it recognises a second attempt.

    Returns:
        A string.

    Raises:
        RuntimeError: Outside a step, callback or handler.

    Example:
        Charge a card once, however often the step is tried::

            @step(atomic=False)
            def charge(self):
                stripe.PaymentIntent.create(amount=1900, currency="eur", idempotency_key=idempotency_key())
                return complete()
    """
    cause = _current.get()
    if cause is None:
        raise RuntimeError("idempotency_key() has a value only inside a step, an automation or a handler.")
    return cause.key
