"""Resuming parked and failed rows in bulk: the mechanism under ``manage.py automation_resume``.

Each layer registers its kinds of rows. A row is resumed by its own ``resume`` method, as from the admin and the API;
nothing here writes a status.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from ...db.writer import alias_of
from ...exceptions import AutomationError
from ...values.text import one_line
from ..history import together
from ..parking import awaits_code as awaits_code

BATCH_SIZE = 100
MAX_NAMES = 1000


@dataclass(frozen=True, slots=True)
class ResumableKind:
    """A kind of row that can be resumed.

    Attributes:
        name: The name of the kind in ``automation_resume``.
        name_field: The field that ``--name`` compares.
        parked: Condition of parked rows.
        failed: Condition of failed rows; None if rows of this kind cannot fail.
        takes_step: Whether its ``resume`` accepts ``step``, to continue at another step.
    """

    name: str
    model: type[models.Model]
    name_field: str
    parked: Q = field(default_factory=lambda: Q(status="parked"))
    failed: Q | None = None
    takes_step: bool = False


_kinds: dict[str, ResumableKind] = {}


def register_resumable_kind(kind: ResumableKind) -> None:
    """Make a kind of row known to ``automation_resume``."""
    _kinds[kind.name] = kind


def resumable_kinds() -> dict[str, ResumableKind]:
    return dict(_kinds)


def names_to_resume(kind: ResumableKind) -> list[str]:
    """Return names of parked and failed rows, at most ``MAX_NAMES``."""
    rows = ResumeRequest(failed=True).rows_of(kind).order_by()
    return list(rows.values_list(kind.name_field, flat=True).distinct()[:MAX_NAMES])


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Selects the rows of a kind to resume.

    Attributes:
        name: Name of the workflow, agent, handler, event, callback or signal.
        pks: Primary keys.
        since: Rows that were parked or failed at this time or later.
        reason: String that their error contains.
        failed: Whether failed rows are resumed, too.
    """

    name: str | None = None
    pks: Sequence[int] | None = None
    since: datetime | None = None
    reason: str | None = None
    failed: bool = False

    def rows_of(self, kind: ResumableKind) -> models.QuerySet[Any]:
        """Return the selected rows of ``kind``."""
        parked, failed = kind.parked, kind.failed if self.failed else None
        if self.since is not None:
            parked &= Q(parked_at__gte=self.since)
            failed = None if failed is None else failed & Q(finished_at__gte=self.since)
        rows = kind.model._default_manager.using(alias_of(kind.model)).filter(
            parked if failed is None else parked | failed
        )
        if self.name is not None:
            rows = rows.filter(**{kind.name_field: self.name})
        if self.pks is not None:
            rows = rows.filter(pk__in=self.pks)
        if self.reason is not None:
            # Lower case on both sides: the column's collation on MariaDB is case-sensitive, for icontains, too.
            rows = rows.alias(lower_error=Lower("error")).filter(lower_error__contains=self.reason.lower())
        return rows.order_by("pk")


@dataclass(frozen=True, slots=True)
class ResumeResult:
    """The result for one row. ``error``: why it was not resumed; ``awaited_code``: whether its code was missing."""

    row: Any
    error: AutomationError | None
    awaited_code: bool


def resume_all(
    kind: ResumableKind, request: ResumeRequest, step: str | None = None, *, again: bool = False
) -> Iterator[ResumeResult]:
    """Resume the selected rows, and yield the result for each. Commits after every ``BATCH_SIZE`` rows, with their
    histories.

    Args:
        kind: The kind of row.
        request: Selects the rows.
        step: The step at which workflow runs continue. Default: the current one.
        again: Allow ``step`` even if it may start a second child run.
    """
    arguments: dict[str, Any] = {} if step is None else {"step": step, "again": again}
    rows, after = request.rows_of(kind), 0
    while batch := list(rows.filter(pk__gt=after)[:BATCH_SIZE]):
        after = batch[-1].pk
        results: list[ResumeResult] = []
        with transaction.atomic(using=alias_of(kind.model)), together():
            for row in batch:
                awaited = awaits_code(row)
                try:
                    row.resume(**arguments)
                    results.append(ResumeResult(row, None, awaited))
                except AutomationError as error:
                    results.append(ResumeResult(row, error, awaited))
        yield from results


def why_not(kind: ResumableKind, pk: int, request: ResumeRequest) -> str:
    """Return why the request does not select the row with this primary key."""
    row = kind.model._default_manager.using(alias_of(kind.model)).filter(pk=pk).first()
    if row is None:
        return f"There is no {kind.name} with the primary key {pk}."
    known = ResumeRequest(pks=[pk], failed=True)
    if not request.failed and known.rows_of(kind).exists():
        return f"{kind.name} {pk} has failed; add --failed to try it again."
    status = getattr(row, "status", "delivered")
    if not known.rows_of(kind).exists():
        return f"{kind.name} {pk} is {status}; only parked and failed rows can be resumed."
    return f"{kind.name} {pk} is {status}, but --name, --since or --reason excludes it."


def resumable_line(kind: ResumableKind, row: Any) -> str:
    """Return one line with the row, its status, since when it has it, and why."""
    status = getattr(row, "status", "parked")
    since = row.parked_at if status == "parked" else getattr(row, "finished_at", None)
    when = f" since {timezone.localtime(since):%Y-%m-%d %H:%M}" if since else ""
    return one_line(f"{kind.name} {row.pk}: {row}, {status}{when}: {row.error_summary}")
