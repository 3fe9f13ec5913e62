"""Pausing and unpausing: what ``engine.pause``, the commands and the admin do.

A layer registers what can be paused by name (``register_pausable``). A pause is one row of ``Pause``, unique by its
target, in the caller's transaction; workers see it after the commit, at their next look for due rows. ``pauses`` and
``holding`` explain what happens to the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from django.db import models, transaction
from django.utils import timezone

from ..db.deadlocks import retry_on_deadlock
from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..exceptions import DefinitionError
from ..values.classes import declaration_of
from ..values.json_text import storable
from ..values.languages import in_english
from .acting import current_actor, signed
from .history import note, note_key, noting
from .holding import ROWS_PER_STATEMENT, release_held
from .lanes import check_queue_names, declared_queues
from .models import HeldRow, Pause
from .notifier import ring_after_commit
from .pausable import PausableWakeable
from .pauses import QUEUE, described, note_pause, target_of_name, target_of_queue
from .periodic_tasks import SliceResult, TimeSlice
from .registry import wakeables


@dataclass(frozen=True, slots=True)
class Pausable:
    """A kind of row that can be paused by name, such as "workflow".

    Attributes:
        model: Its model.
        names: Returns the names that the code declares.
        declaration: Where a decorated class has its declaration, and the decorator; None if only names are given.
    """

    scope: str
    model: type[PausableWakeable]
    names: Callable[[], Collection[str]]
    declaration: tuple[str, str] | None = None


_pausables: dict[str, Pausable] = {}


def register_pausable(pausable: Pausable) -> None:
    """Let rows of a kind be paused by name."""
    _pausables[pausable.scope] = pausable


def scopes() -> list[str]:
    """Return what can be paused by name, and queues."""
    return [*_pausables, QUEUE]


def names_in(scope: str) -> list[str]:
    """Return the names that the code declares in a scope, sorted."""
    return declared_queues() if scope == QUEUE else sorted(_pausables[scope].names())


def model_of(scope: str) -> type[PausableWakeable]:
    return _pausables[scope].model


# -- targets -----------------------------------------------------------------------------------------------------------


def find_target(scope: str, given: str | type) -> str:
    """Return the target of a workflow, agent or callback (its name, or its class), or of a queue.

    A name that no code declares is accepted while it is paused, so that the pause can be ended.

    Raises ``DefinitionError`` for an unknown name, with the nearest one, and for a class that is not decorated.
    """
    if scope == QUEUE:
        target = target_of_queue(str(given))
        try:
            check_queue_names([str(given)], ())
        except ValueError as error:
            if not _is_paused(target):
                raise DefinitionError(str(error)) from error
        return target
    if scope not in _pausables:
        raise DefinitionError(f"There is no {scope} to pause: its app is not in INSTALLED_APPS.")
    pausable = _pausables[scope]
    known = pausable.names()
    if isinstance(given, type) and pausable.declaration is not None:
        attribute, decorator = pausable.declaration
        given = str(declaration_of(given, attribute, f"a {scope}", decorator).name)
    if not isinstance(given, str):
        name = f"{getattr(given, '__module__', '')}.{getattr(given, '__qualname__', '')}"
        raise DefinitionError(f"Give the name of the {scope}{f', {name!r}' if name in known else ''}, not {given!r}.")
    target = target_of_name(scope, given)
    if given not in known and not _is_paused(target):
        near = _nearest(given, known)
        hint = f"Did you mean {near!r}?" if near else f"Known: {', '.join(map(repr, sorted(known))) or 'none'}."
        raise DefinitionError(f"No {scope} is called {given!r}. {hint}")
    return target


def _nearest(given: str, known: Collection[str]) -> str:
    """Return the name that is most like ``given``, which may lack the module. Empty: none is like it."""
    whole = get_close_matches(given, known, n=1)
    ends = {name.rpartition(".")[2]: name for name in sorted(known)}
    return whole[0] if whole else next((ends[each] for each in get_close_matches(given, ends, n=1)), "")


def _is_paused(target: str) -> bool:
    return Pause.objects.filter(target=target).exists()


# -- pausing -----------------------------------------------------------------------------------------------------------


def pause(target: str, reason: str = "", *, row: PausableWakeable | None = None, now: datetime | None = None) -> bool:
    """Pause ``target`` in the caller's transaction; return whether it was not paused before. ``row``: the row that the
    target names, if it names one."""
    made = Pause(
        target=target,
        row_kind="" if row is None else row.kind,
        row_pk=None if row is None else row.pk,
        reason=storable(signed("Paused", reason)),
        paused_at=now or timezone.now(),
    )
    note_pause()
    with noting(Pause) as is_noted:
        is_new = bool(insert_ignoring(Pause, [made]))
        if is_new and is_noted:
            _note(target, "Paused", reason)
    return is_new


def unpause(target: str) -> bool:
    """End the pause of ``target`` in the caller's transaction; return whether there was one.

    Rows that it has held are due at once; those of a paused queue, or of everything, have been due all the time.
    """
    alias = alias_of(Pause)
    with transaction.atomic(using=alias):
        ended, _ = Pause.objects.filter(target=target).delete()
        if not ended:
            return False
        _note(target, "Unpaused")
        # The first ones now, and all once more after the commit: see ``holding``.
        release_held(target, ROWS_PER_STATEMENT)
        transaction.on_commit(lambda: _release_and_ring(target), using=alias, robust=True)
        ring_after_commit(alias)
    return True


def _note(target: str, done: str, reason: str = "") -> None:
    """Record who has paused or unpaused: in the history of the row, or of the target."""
    if current_actor() is None:
        return
    kind, _, pk = target.rpartition("#")
    model = next((each for each in wakeables() if pk.isdigit() and each.kind == kind), None)
    if model is None:
        note_key(Pause, target, in_english(described)(target), done, reason)
    elif (row := model._base_manager.using(alias_of(model)).filter(pk=pk).first()) is not None:
        note(row, done, reason)


def _release_and_ring(target: str) -> None:
    if retry_on_deadlock(alias_of(HeldRow), lambda: release_held(target)):
        ring_after_commit(alias_of(HeldRow))


def pause_row(row: PausableWakeable, reason: str = "") -> bool:
    """Pause one row; return False if it has ended or was paused already."""
    known = type(row)._base_manager.using(alias_of(type(row))).filter(pk=row.pk)
    if not known.filter(_unfinished(type(row))).exists():
        return False
    return pause(row.own_target, reason, row=row)


def _unfinished(model: type[PausableWakeable]) -> models.Q:
    return models.Q(pk__in=model.unfinished().values("pk"))


def reconcile_pauses(time_slice: TimeSlice) -> SliceResult:
    """Release rows that are held although their pause has ended, because a process died, and delete the pauses of rows
    that have ended."""
    targets = HeldRow.objects.exclude(target__in=Pause.objects.values("target")).values_list("target", flat=True)
    done = sum(release_held(target) for target in targets.distinct())
    for model in wakeables():
        if issubclass(model, PausableWakeable):
            single = Pause.objects.filter(row_kind=model.kind, row_pk__isnull=False)
            done += single.exclude(row_pk__in=model.unfinished().values("pk")).delete()[0]
    return SliceResult(done)
