"""What an attempt of user code is about, for logs; and observers that surround attempts, for traces and error trackers.

``attempt`` opens ``observed`` around everything that belongs to one attempt: the user code, its commit, and the signals
that report it. An observer is a function that returns a context manager, so that a trace can make its span the current
one, and is given a chance to end it whatever happens. Without an observer nothing is called.

An observer that raises is logged, and changes nothing of the attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .causation import CurrentRun
from .wakeable import Wakeable

logger = logging.getLogger("django_ai.automation")


@dataclass(frozen=True, slots=True)
class Subject:
    """What the engine works at.

    Attributes:
        row: The row whose code runs: a workflow run, a callback execution, an agent, or a handler execution.
        current: The attempt; None outside one, for instance while a parked row is reported.
        leased: The row that the worker has leased: for a handler its agent.
    """

    row: Any
    current: CurrentRun | None = None
    leased: Any = None


Observer = Callable[[Wakeable, CurrentRun], AbstractContextManager[Any]]

_subject: ContextVar[Subject | None] = ContextVar("automation_subject", default=None)
_observers: dict[str, Observer] = {}


def observe_attempts(name: str, observer: Observer) -> None:
    """Let ``observer`` surround each attempt: ``observer(row, current)`` returns a context manager.

    ``row`` is leased by this worker; ``current.row`` is the row whose code runs. Those that are registered first are
    outermost. An earlier observer of the same ``name`` is replaced.
    """
    _observers[name] = observer


def forget_observer(name: str) -> None:
    _observers.pop(name, None)


def has_observers() -> bool:
    return bool(_observers)


def current_subject() -> Subject | None:
    """Return what the engine works at in this thread."""
    return _subject.get()


def subject_of(row: Any) -> Subject | None:
    """Return the attempt in this thread if it is one of ``row``; None for any other row, such as an event whose
    condition raises while a step saves its entity."""
    subject = _subject.get()
    return subject if subject is not None and (subject.row is row or subject.leased is row) else None


@contextmanager
def about(row: Any) -> Iterator[None]:
    """Say that what is logged during the block is about ``row``."""
    if subject_of(row) is not None:
        yield
        return
    token = _subject.set(Subject(row))
    try:
        yield
    finally:
        _subject.reset(token)


@contextmanager
def resumed(subject: Subject | None) -> Iterator[None]:
    """Say that what is logged during the block is about ``subject``, whose attempt ran earlier."""
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


@contextmanager
def observed(row: Wakeable, current: CurrentRun) -> Iterator[None]:
    """Surround one attempt of ``row``."""
    if current.row is None:
        current.row = row
    current.attempt = current.row.attempt + 1
    token = _subject.set(Subject(current.row, current, row))
    entered = [context for name, observer in _observers.items() if (context := _enter(name, observer, row, current))]
    try:
        yield
    finally:
        for context in reversed(entered):
            _leave(context)
        _subject.reset(token)


def _enter(name: str, observer: Observer, row: Wakeable, current: CurrentRun) -> AbstractContextManager[Any] | None:
    try:
        context = observer(row, current)
        context.__enter__()
    except Exception:
        logger.exception("The observer %r of attempts failed", name)
        return None
    return context


def _leave(context: AbstractContextManager[Any]) -> None:
    try:
        context.__exit__(None, None, None)
    except Exception:
        logger.exception("An observer of attempts failed at its end")
