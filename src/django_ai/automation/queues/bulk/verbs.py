"""What can be done to many rows at once: each layer registers its kinds of rows and their verbs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from django.db import models

from ...exceptions import DefinitionError
from .. import pausing
from ..models import Pause

Act = Callable[[Any, str], Any]
"""Does something to one row, with a reason. Returns False, or raises ``AutomationError``, if that is refused."""

ActTogether = Callable[[Sequence[Any], str], Collection[int]]
"""Does the same to those of several rows for which few statements suffice, in the caller's transaction. Returns their
primary keys."""


@dataclass(frozen=True, slots=True)
class BulkVerb:
    """What is done to each row.

    Attributes:
        act: Does it to one row.
        done: The past participle for messages and histories.
        applies: Returns the condition of the rows on which it has an effect. The others are not read.
        refusal: Why a row is refused for which ``act`` returns False.
        is_final: Whether it cannot be undone.
        act_together: Does it to some of several rows first, if that is faster; ``act`` does it to the others.
    """

    act: Act
    done: str
    applies: Callable[[], models.Q]
    refusal: str = "It has already finished."
    is_final: bool = False
    act_together: ActTogether | None = None


@dataclass(frozen=True, slots=True)
class BulkKind:
    """A kind of row with the verbs for it.

    Attributes:
        name: The name of the kind, as in ``automation_resume``.
        model: Its model.
        name_field: The field with the name of the workflow, agent, handler, event, callback or signal.
        verbs: The verbs by their names, which are those of the actions of the admin.
    """

    name: str
    model: type[models.Model]
    name_field: str
    verbs: Mapping[str, BulkVerb] = field(default_factory=dict)


_kinds: dict[str, BulkKind] = {}


def register_bulk_kind(kind: BulkKind) -> None:
    """Let workers do the verbs of ``kind`` to many of its rows."""
    _kinds[kind.name] = kind


def bulk_kinds() -> dict[str, BulkKind]:
    return dict(_kinds)


def kind_of_model(model: type[models.Model]) -> BulkKind | None:
    """Return the kind of rows of ``model``, or None."""
    return next((kind for kind in _kinds.values() if kind.model is model._meta.concrete_model), None)


def find_kind(name: str) -> BulkKind:
    """Return a kind of row. Raises ``DefinitionError`` for an unknown name, with the nearest one."""
    if name not in _kinds:
        raise DefinitionError(f"There is no kind of row {name!r} for bulk actions. {_nearest(name, _kinds)}")
    return _kinds[name]


def find_verb(kind: BulkKind, name: str) -> BulkVerb:
    """Return a verb of ``kind``. Raises ``DefinitionError`` for an unknown name, with the nearest one."""
    if name not in kind.verbs:
        raise DefinitionError(
            f"There is no bulk action {name!r} for rows of the kind {kind.name!r}. {_nearest(name, kind.verbs)}"
        )
    return kind.verbs[name]


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(repr, names)) or 'none'}."


# -- verbs that several layers share -----------------------------------------------------------------------------------


def resuming(applies: models.Q) -> BulkVerb:
    """Return the verb that resumes rows, which have a method ``resume``."""
    return BulkVerb(lambda row, reason: row.resume(), "Resumed", lambda: applies)


def pausing_verbs(model: type[Any], unfinished: models.Q) -> dict[str, BulkVerb]:
    """Return the verbs that pause and unpause single rows of ``model``."""

    def paused() -> models.Q:
        return models.Q(pk__in=Pause.objects.filter(row_kind=model.kind, row_pk__isnull=False).values("row_pk"))

    return {
        "pause": BulkVerb(pausing.pause_row, "Paused", lambda: unfinished, "It has finished, or is paused already."),
        "unpause": BulkVerb(
            lambda row, reason: pausing.unpause(row.own_target), "Unpaused", paused, "It is not paused itself."
        ),
    }
