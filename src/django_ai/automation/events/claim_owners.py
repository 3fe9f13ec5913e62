"""What can own a claim: the kinds of runs that the layers above register, and the run behind a claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models

if TYPE_CHECKING:
    from .models import EventClaim

Unfinished = Callable[[], models.QuerySet[Any]]

_owners: dict[str, Unfinished] = {}


def register_owner(kind: str, unfinished: Unfinished) -> None:
    """Let runs own claims, under the name ``kind``; ``unfinished()`` returns the unfinished ones."""
    _owners[kind] = unfinished


def owner_of(claim: EventClaim) -> models.Model | None:
    """Return the run that holds ``claim``, or None if it is gone."""
    unfinished = _owners.get(claim.owner_kind)
    return unfinished().model._base_manager.filter(pk=claim.owner_id).first() if unfinished else None


def unfinished_owners(kind: str) -> models.QuerySet[Any]:
    """Return the runs of ``kind`` that may hold claims."""
    return _owners[kind]()


def kind_of(run: models.Model) -> str | None:
    """Return the kind of owner that ``run`` is, or None if it cannot own claims."""
    return next((kind for kind, unfinished in _owners.items() if isinstance(run, unfinished().model)), None)


def owner_kinds() -> list[str]:
    """Return the kinds of runs that may hold claims."""
    return sorted(_owners)


def owners_of(claims: Sequence[EventClaim]) -> dict[int, models.Model]:
    """Return the runs that hold ``claims`` by the claims' keys: one query for each kind of owner."""
    found: dict[int, models.Model] = {}
    for kind, unfinished in _owners.items():
        mine = {claim.pk: claim.owner_id for claim in claims if claim.owner_kind == kind}
        runs = unfinished().model._base_manager.in_bulk(set(mine.values())) if mine else {}
        found |= {pk: runs[owner] for pk, owner in mine.items() if owner in runs}
    return found
