"""``CurrentRun``: which step, handler or callback is running now, and its position in a chain of causes.

``attempt`` sets it around user code, and it is the only place that records what is running: claims read their owner
from it, a run that ends itself stores its end there, and everything that the code saves or sends records it as its
cause. The engine detects event storms by it, and the admin shows why something happened. Outside a worker there is no
current run; there the cause is who acts (``acting``), if that is known.
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
from .acting import current_actor

CHAIN_BREAK = timedelta(seconds=1)
"""A chain of causes ends where this much time passes between a cause and its effect, because the effect was planned
ahead, was waited for, or took that long: what repeats once a minute is no storm."""


def breaks_chain(delay: timedelta | None) -> bool:
    """Return whether ``delay``, for instance before another attempt, ends a chain of causes."""
    return delay is not None and delay >= CHAIN_BREAK


class Owner(NamedTuple):
    """A run of a workflow or an agent, which may own claims. ``namespace``: the namespace of its events, if its class
    has one."""

    kind: str
    pk: int
    namespace: str | None = None


@dataclass(slots=True)
class CurrentRun:
    """One running attempt of user code."""

    label: str
    """The row and the code: ``"workflow:12:step"``."""
    chain_length: int
    """The length of its chain of causes when it started."""
    key: str
    """Its idempotency key."""
    owner: Owner | None = None
    """The run that it belongs to, if any."""
    row: Any = None
    """The row whose code runs. Default: that of the attempt. For a handler it is its execution, not its agent."""
    attempt: int = 0
    """The number of this attempt, from 1; ``attempt`` sets it."""
    trace_context: str | None = None
    """The trace context of its cause (``tracing``)."""
    started_trace: str | None = None
    """The context of the trace that this attempt has started, to be stored on the run that it belongs to."""
    started_at: datetime = field(default_factory=lambda: timezone.now())
    view: Any = None
    """What the layer above exposes to the project's code while that runs (see ``inside``)."""
    ending: tuple[Any, str] | None = None
    """The status and the reason with which the code has requested the end of its own run."""
    ends_at_once: bool = False
    """Whether that end skips what the run would do before it."""
    holds_claims: bool = False
    """Whether it has acquired claims."""
    is_over: bool = False
    """Whether what it has committed has ended its own run."""

    @property
    def depth(self) -> int:
        """The depth in its chain of what this run causes now. After a second or more of work a new chain starts: a
        chain of such links is slow, and no storm."""
        return 1 if timezone.now() - self.started_at >= CHAIN_BREAK else self.chain_length


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
    """Expose ``view`` to the project's code of the current run, and let it end its own run, during the block."""
    current = _current.get()
    assert current is not None
    current.view, current.ending, current.ends_at_once = view, None, False
    try:
        yield current
    finally:
        current.view = None


def current_cause() -> CurrentRun | None:
    """Return what is running now: the cause of everything that it saves or sends."""
    return _current.get()


def cause_now() -> tuple[str, int]:
    """Return the cause of what is saved or sent now, as its label and its depth in the chain of causes: what is running
    now, or who acts. Without either, an empty label. A chain begins with the actor, at depth 0."""
    current = _current.get()
    if current is not None:
        return current.label, current.depth
    actor = current_actor()
    return ("" if actor is None else actor.label), 0


def current_run(kind: str) -> CurrentRun | None:
    """Return what is running now, if it is the project's code of a run of ``kind``: a step or a handler."""
    current = _current.get()
    if current is None or current.view is None or current.owner is None or current.owner.kind != kind:
        return None
    return current


def own_run_pk(kind: str) -> int | None:
    """Return the primary key of the run of ``kind`` whose code is running now, or None."""
    current = current_run(kind)
    return current.owner.pk if current is not None and current.owner is not None else None


def end_own_run(kind: str, pk: int, status: Any, reason: str, *, at_once: bool = False) -> bool:
    """Return whether the running code is that of the run ``pk``. If so, the run ends with the commit of its attempt,
    and the caller must not change its row."""
    current = current_run(kind)
    if current is None or own_run_pk(kind) != pk:
        return False
    current.ending, current.ends_at_once = (status, reason), at_once
    return True


def note_end(kind: str, pk: int) -> None:
    """Tell the running attempt that the run ``pk`` has ended. If that is its own run, which a hook of its commit has
    ended, the worker enters nothing more."""
    current = _current.get()
    if current is not None and current.owner is not None and (current.owner.kind, current.owner.pk) == (kind, pk):
        current.is_over = True


def next_depth(what: str) -> int:
    """Return the depth of ``what`` in its chain of causes if it starts now. Raises ``EventStormError`` beyond
    ``MAX_DEPTH``."""
    cause = _current.get()
    if cause is None:
        return 0
    if cause.depth > conf().MAX_DEPTH:
        raise EventStormError(
            f"{what} would be number {cause.depth} in a chain of causes without a pause (last cause: {cause.label}); "
            f"AUTOMATION['MAX_DEPTH'] is {conf().MAX_DEPTH}. Break the cycle, or add a sleep of a second or more to it."
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
