"""What can own a claim: the kinds of runs that the layers above register, and the run behind a claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.db import models

Unfinished = Callable[[], models.QuerySet[Any]]

_owners: dict[str, Unfinished] = {}


def register_owner(kind: str, unfinished: Unfinished) -> None:
    """Let runs own claims, under the name ``kind``; ``unfinished()`` returns the unfinished ones."""
    _owners[kind] = unfinished


def find_owner(kind: str, pk: int) -> models.Model | None:
    """Return the run of ``kind`` with this primary key, or None if it was deleted."""
    unfinished = _owners.get(kind)
    return unfinished().model._base_manager.filter(pk=pk).first() if unfinished else None


def unfinished_owners(kind: str) -> models.QuerySet[Any]:
    """Return the runs of ``kind`` that may hold claims."""
    return _owners[kind]()


def kind_of(run: models.Model) -> str | None:
    """Return the kind of owner that ``run`` is, or None if it cannot own claims."""
    return next((kind for kind, unfinished in _owners.items() if isinstance(run, unfinished().model)), None)


def owner_kinds() -> list[str]:
    """Return the kinds of runs that may hold claims."""
    return sorted(_owners)


def find_owners(owners: Iterable[tuple[str, int]]) -> dict[tuple[str, int], models.Model]:
    """Return the runs by kind and primary key, with one query for each kind."""
    keys: dict[str, set[int]] = {}
    for kind, pk in owners:
        keys.setdefault(kind, set()).add(pk)
    return {
        (kind, pk): run
        for kind, pks in keys.items()
        if kind in _owners
        for pk, run in _owners[kind]().model._base_manager.in_bulk(pks).items()
    }
