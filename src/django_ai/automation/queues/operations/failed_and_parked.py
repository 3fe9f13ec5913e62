"""How many rows have failed for good or are parked, counted from indexes that hold little else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import models

from ...db.writer import alias_of
from .explanations import kind_name
from .resume import ResumableKind, resumable_kinds

MAX_COUNTED_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class FailedAndParked:
    """The numbers of failed and parked rows by kind, without kinds that have none. A count stops at ``limit + 1``."""

    failed: Mapping[str, int]
    parked: Mapping[str, int]
    limit: int = field(default=MAX_COUNTED_ROWS)

    def as_dict(self) -> dict[str, Any]:
        return {"failed": dict(self.failed), "parked": dict(self.parked)}

    def __str__(self) -> str:
        return f"Failed: {self._format(self.failed)}. Parked: {self._format(self.parked)}."

    def _format(self, counts: Mapping[str, int]) -> str:
        texts = [
            f"more than {self.limit} {kind}(s)" if count > self.limit else f"{count} {kind}(s)"
            for kind, count in counts.items()
        ]
        return ", ".join(texts) or "none"


def count_failed_and_parked(limit: int = MAX_COUNTED_ROWS) -> FailedAndParked:
    """Count the rows that ``automation_resume --failed`` would list. Reads only."""
    failed: dict[str, int] = {}
    parked: dict[str, int] = {}
    for kind in resumable_kinds().values():
        for counts, keys in ((failed, failed_keys(kind)), (parked, parked_keys(kind))):
            if keys is not None and (count := keys[: limit + 1].count()):
                counts[kind_name(kind.model)] = count
    return FailedAndParked(failed, parked, limit)


def failed_keys(kind: ResumableKind) -> models.QuerySet[Any] | None:
    """Return the primary keys of the failed rows; None if rows of this kind cannot fail."""
    return None if kind.failed is None else _keys(kind, kind.failed)


def parked_keys(kind: ResumableKind) -> models.QuerySet[Any]:
    """Return the primary keys of the parked rows."""
    # Each parked row has a ``parked_at``; the condition lets MariaDB use its index.
    return _keys(kind, kind.parked & models.Q(parked_at__isnull=False))


def _keys(kind: ResumableKind, condition: models.Q) -> models.QuerySet[Any]:
    return kind.model._base_manager.using(alias_of(kind.model)).filter(condition).order_by().values("pk")
