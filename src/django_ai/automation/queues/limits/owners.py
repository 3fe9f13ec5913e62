"""What the layers above register: how limits reach the rows of a kind, and which limits the code declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import models
from django.db.models import Case, Q, Value, When

from ...db.writer import alias_of
from ...values.limits import DeclaredLimit
from ..lease import revoke
from ..notifier import ring_after_commit
from ..wakeable import Wakeable

MAX_CLOCK_SKEW = timedelta(minutes=1)
"""A row that is due within this time counts as due: the clocks of machines may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotOwner:
    """A kind of rows that limits apply to.

    ``find``: the limits that the code declares under a name; None if it has nothing of that name. ``unfinished``: the
    rows that have not ended. ``waiting``: those that may wait for a slot. ``executing``: those that
    may be executed at a moment. ``admit``: makes waiting rows due, each at its start. ``cancel``: ends a row.
    """

    kind: str
    model: type[models.Model]
    find: Callable[[str], Sequence[DeclaredLimit] | None]
    unfinished: Callable[[], models.QuerySet[Any]]
    waiting: Callable[[], models.QuerySet[Any]]
    executing: Callable[[datetime], models.QuerySet[Any]]
    admit: Callable[[Mapping[int, datetime]], None]
    cancel: Callable[[int, str, datetime], None]


_owners: dict[str, SlotOwner] = {}


def register_slot_owner(owner: SlotOwner) -> None:
    """Let limits apply to the rows of ``owner``."""
    _owners[owner.kind] = owner


def find_owner(kind: str) -> SlotOwner | None:
    return _owners.get(kind)


def wakeable_owner(
    kind: str,
    model: type[Wakeable],
    find: Callable[[str], Sequence[DeclaredLimit] | None],
    waiting: Callable[[], models.QuerySet[Any]],
    cancel: Callable[[int, str, datetime], None],
) -> SlotOwner:
    """Return the owner of a model of Wakeables. ``waiting``: its rows that may wait for a slot."""

    def admit(starts: Mapping[int, datetime]) -> None:
        due_at: Any = next(iter(starts.values()))
        if len(set(starts.values())) > 1:
            due_at = Case(
                *(When(pk=pk, then=Value(start)) for pk, start in starts.items()),
                output_field=models.DateTimeField(),
            )
        revoke(waiting().filter(pk__in=list(starts)), wake_at=due_at)
        ring_after_commit(alias_of(model), model)

    return SlotOwner(
        kind=kind,
        model=model,
        find=find,
        unfinished=model.unfinished,
        waiting=waiting,
        executing=lambda now: model.unfinished().filter(Q(lease__isnull=False) | Q(wake_at__lte=now + MAX_CLOCK_SKEW)),
        admit=admit,
        cancel=cancel,
    )
