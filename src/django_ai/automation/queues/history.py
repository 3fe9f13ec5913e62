"""Who did what: the verbs of operators (resume, cancel, pause ...) leave an ``Action``, if somebody acts (``acting``).

The row is inserted in the transaction of the change, by the verb itself, so the admin, a command and a view of the
project leave the same trace. Without an actor, as in workers and tests, nothing is written. The actor is stored as a
string: the entry outlives the user, and needs neither ``django.contrib.auth`` nor the admin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from django.db import models, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..db.writer import alias_of
from ..values.json_text import storable
from .acting import current_actor
from .models import Action

DONE = {
    "Added": _("Added"),
    "Baselined": _("Baselined"),
    "Cancelled": _("Cancelled"),
    "Changed": _("Changed"),
    "Completed": _("Completed"),
    "Deleted": _("Deleted"),
    "Edited": _("Edited"),
    "Encrypted": _("Encrypted"),
    "Fired": _("Fired"),
    "Forgotten": _("Forgotten"),
    "Forked": _("Forked"),
    "Moved": _("Moved"),
    "Muted": _("Muted"),
    "Paused": _("Paused"),
    "Redelivered": _("Redelivered"),
    "Released": _("Released"),
    "Resumed": _("Resumed"),
    "Rewound": _("Rewound"),
    "Signalled": _("Signalled"),
    "Skipped": _("Skipped"),
    "Started": _("Started"),
    "Tried now": _("Tried now"),
    "Unmuted": _("Unmuted"),
    "Unpaused": _("Unpaused"),
}
"""What ``Action.done`` may be, with its translations."""

F = TypeVar("F", bound=Callable[..., Any])

_collected: ContextVar[list[Action] | None] = ContextVar("automation_collected_actions", default=None)


def note(row: models.Model, done: str, reason: str = "") -> None:
    """Record in the caller's transaction that the actor has ``done`` something to ``row``."""
    note_key(type(row), str(row.pk), str(row), done, reason)


def note_key(model: type[models.Model], key: str, what: str, done: str, reason: str = "") -> None:
    """Record in the caller's transaction that the actor has ``done`` something to what has the ``key``.

    ``reason``: unless it is empty, the one of the verb instead of that of the actor.
    """
    actor = current_actor()
    if actor is None:
        return
    action = Action(
        model=model._meta.concrete_model._meta.label_lower,  # type: ignore[union-attr]
        key=key,
        what=storable(what)[:200],
        done=done,
        actor=storable(actor.label),
        actor_name=storable(actor.name)[:200],
        reason=storable(reason if reason.strip() not in ("", f"{done}.") else actor.reason),
        done_at=timezone.now(),
    )
    collected = _collected.get()
    if collected is None:
        action.save(force_insert=True, using=alias_of(Action))
    else:
        collected.append(action)


@contextmanager
def noting(model: type[models.Model]) -> Iterator[bool]:
    """Make a change of rows of ``model`` and its ``note`` one transaction. Yields whether somebody acts; without an
    actor it does nothing."""
    if current_actor() is None:
        yield False
        return
    with transaction.atomic(using=alias_of(model)):
        yield True


@contextmanager
def noting_reason(model: type[models.Model]) -> Iterator[bool]:
    """As ``noting``, but only if somebody acts and says why.

    For what inserts rows: they name their actor as their cause in any case, so a view that serves a customer inserts no
    second row.
    """
    actor = current_actor()
    if actor is None or not actor.reason.strip():
        yield False
        return
    with transaction.atomic(using=alias_of(model)):
        yield True


def noted(done: str) -> Callable[[F], F]:
    """Decorate a method of a row that changes it: ``note`` what is done, in one transaction with it, unless it raises
    or returns False."""

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def call(row: models.Model, *args: Any, **kwargs: Any) -> Any:
            with noting(type(row)):
                result = method(row, *args, **kwargs)
                if result is not False:
                    note(row, done)
            return result

        return cast(F, call)

    return decorate


@contextmanager
def together() -> Iterator[None]:
    """Insert what the block notes with few statements at its end. Nothing is inserted if the block raises. Use it
    inside the transaction of the changes."""
    token = _collected.set([])
    try:
        yield
        actions = _collected.get()
    finally:
        _collected.reset(token)
    if actions:
        Action._base_manager.using(alias_of(Action)).bulk_create(actions)


def done_in_words(action: Action) -> str:
    """Return what was done, in the language of the reader."""
    return str(DONE.get(action.done, action.done))


def told(action: Action) -> str:
    """Return what was done, and why."""
    done = done_in_words(action)
    return f"{done}: {action.reason}" if action.reason else f"{done}."


def actions_of(model: type[models.Model], key: str) -> models.QuerySet[Action]:
    """Return what was done to a row, the oldest first."""
    label = model._meta.concrete_model._meta.label_lower  # type: ignore[union-attr]
    return Action._base_manager.using(alias_of(Action)).filter(model=label, key=key).order_by("pk")
