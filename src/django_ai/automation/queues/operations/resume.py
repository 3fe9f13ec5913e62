"""Resuming what is parked, many rows at once: the mechanism under ``manage.py automation_resume``.

Each floor registers its kinds of rows. Whatever asks, a row comes back by its own ``resume``, as in the admin and by
the API; nothing here writes a status.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Lower

from ...db.writer import alias_of
from ...exceptions import AutomationError

CHUNK = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of row that can be resumed. ``parked`` and ``failed`` say which are; ``called``: the field with the name
    that people know it by; ``takes_step``: whether ``resume(step=...)`` lets it go on elsewhere."""

    name: str
    model: type[models.Model]
    called: str
    parked: Q = field(default_factory=lambda: Q(status="parked"))
    failed: Q | None = None
    takes_step: bool = False


def awaits_code(row: Any) -> bool:
    """Return whether ``row`` is parked because the workers lack its code: resumed before they have it, it is parked
    again."""
    status, parked_at = getattr(row, "status", ""), getattr(row, "parked_at", None)
    return status == "parked" and parked_at is not None and getattr(row, "wake_at", parked_at) is not None


_kinds: dict[str, Kind] = {}


def register_kind(kind: Kind) -> None:
    """Let ``automation_resume`` know a kind of row."""
    _kinds[kind.name] = kind


def kinds() -> dict[str, Kind]:
    return dict(_kinds)


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Which rows of a kind are meant. ``since``: parked or failed at that moment or later; ``reason``: a text that
    their error contains; ``failed``: those that failed, too."""

    name: str | None = None
    pks: Sequence[int] | None = None
    since: datetime | None = None
    reason: str | None = None
    failed: bool = False

    def rows_of(self, kind: Kind) -> models.QuerySet[Any]:
        """Return what is meant of ``kind``."""
        parked, failed = kind.parked, kind.failed if self.failed else None
        if self.since is not None:
            parked &= Q(parked_at__gte=self.since)
            failed = None if failed is None else failed & Q(finished_at__gte=self.since)
        rows = kind.model._default_manager.using(alias_of(kind.model)).filter(
            parked if failed is None else parked | failed
        )
        if self.name is not None:
            rows = rows.filter(**{kind.called: self.name})
        if self.pks is not None:
            rows = rows.filter(pk__in=self.pks)
        if self.reason is not None:
            # In small letters on both sides: our text is compared exactly on MariaDB, also by icontains.
            rows = rows.alias(reason=Lower("error")).filter(reason__contains=self.reason.lower())
        return rows.order_by("pk")


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of one row: ``error`` refused it; ``awaited_code``: it was parked for missing code."""

    row: Any
    error: AutomationError | None
    awaited_code: bool


def resume_all(kind: Kind, wish: ResumeRequest, step: str | None = None, *, again: bool = False) -> Iterator[Resumed]:
    """Resume what is meant, and yield what became of each row.

    ``step``: where workflow runs go on instead; ``again``: even if that may start a second child run. Commits 100 rows
    at a time.
    """
    arguments: dict[str, Any] = {} if step is None else {"step": step, "again": again}
    rows, after = wish.rows_of(kind), 0
    while chunk := list(rows.filter(pk__gt=after)[:CHUNK]):
        after = chunk[-1].pk
        done: list[Resumed] = []
        with transaction.atomic(using=alias_of(kind.model)):
            for row in chunk:
                awaited = awaits_code(row)
                try:
                    row.resume(**arguments)
                    done.append(Resumed(row, None, awaited))
                except AutomationError as error:
                    done.append(Resumed(row, error, awaited))
        yield from done
