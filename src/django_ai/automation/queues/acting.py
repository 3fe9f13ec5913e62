"""Who acts: the user, command or system on whose behalf the code of this request, thread or task runs, and why.

``acting_as`` sets it for a block, and ``ActorMiddleware`` for a request. It is read where something is written: what
the block creates names its actor as its cause (``causation.cause_now``), and the texts of what it cancels or pauses
name it, too (``signed``). Workers clear it before they perform a row: what a row causes has the row as its cause, and
the chain of causes leads back to the actor who began it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from ..exceptions import DefinitionError

MAX_LABEL = 200
USER = "user"
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:.-]*")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts.

    Attributes:
        label: ``"user:5"``, or the string that was given.
        name: Its name in texts: the user name, or the label.
        reason: Why it acts.
        user: The Django user, if one was given.
    """

    label: str
    name: str
    reason: str = ""
    user: Any = None


_acting: ContextVar[tuple[Any, str]] = ContextVar("automation_acting", default=(None, ""))


@contextmanager
def acting_as(actor: Any, reason: str = "") -> Iterator[None]:
    """Name who acts in a block, and why.

    Events, runs, agents and signals that the block creates have the actor as their cause: ``user:5`` in the field
    ``caused_by``. What it cancels or pauses says so. Blocks may be nested; the inner one counts. The actor belongs to
    the context of the block, as with every ``contextvars.ContextVar``: other requests, threads and tasks do not see it,
    and ``sync_to_async`` and ``asyncio.to_thread`` take it along. Nothing is written and nothing is queried here.

    Args:
        actor: A Django user; or a string of 1 to 200 letters, digits and ``_ : . -``, such as ``"system:nightly"`` or
            ``"user:5"``; or a function without arguments that returns one of these, which is called each time that the
            actor is needed. None, and a user that has not logged in: no actor.
        reason: Why, as a string for the operator. Default: none.

    Returns:
        A context manager.

    Raises:
        DefinitionError: If the actor is something else, or a user that was not saved. For what a function returns it is
            raised where the actor is needed.

    Example:
        Cancel runs in a script, and say who did it::

            with acting_as("system:nightly", "The season is over."):
                for run in engine.runs("remind").unfinished():
                    engine.cancel(run)
    """
    if not callable(actor):
        _identified(actor, reason)
    token = _acting.set((actor, reason))
    try:
        yield
    finally:
        _acting.reset(token)


def current_actor() -> Actor | None:
    """Return who acts now. None: no actor was named."""
    actor, reason = _acting.get()
    if actor is None:
        return None
    return _identified(actor() if callable(actor) else actor, reason)


def signed(done: str, reason: str) -> str:
    """Return ``reason`` with who acts: "Cancelled by ada: The file was deleted."; unchanged without an
    actor.

    ``done``: the past participle. A reason that only repeats it gives way to the reason of ``acting_as``.
    """
    actor = current_actor()
    if actor is None:
        return reason
    why = actor.reason if reason.strip() in ("", f"{done}.") else reason
    return f"{done} by {actor.name}: {why}" if why else f"{done} by {actor.name}."


def _identified(actor: Any, reason: str) -> Actor | None:
    if actor is None:
        return None
    if isinstance(actor, Actor):  # of work that was done for somebody, who may be gone
        return replace(actor, reason=reason)
    if isinstance(actor, str):
        if len(actor) > MAX_LABEL or not _LABEL.fullmatch(actor):
            raise DefinitionError(
                f"acting_as({actor!r:.80}): name the actor in 1 to {MAX_LABEL} letters, digits and _ : . -, as in "
                '"system:nightly".'
            )
        return Actor(actor, actor, reason)
    if not hasattr(actor, "is_authenticated"):
        raise DefinitionError(
            f'acting_as({actor!r:.80}): give a Django user, a string such as "system:nightly", a function that '
            "returns one of them, or None."
        )
    if not actor.is_authenticated:
        return None
    if actor.pk is None:
        raise DefinitionError(f"acting_as({actor!r:.80}): save the user first; it has no primary key.")
    return Actor(f"{USER}:{actor.pk}"[:MAX_LABEL], str(actor), reason, actor)
