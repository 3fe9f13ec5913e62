"""What each unfinished row waits for: ``manage.py automation_health --explain``.

``explain`` goes through every unfinished row and names the one thing that it waits for. A row that waits for nothing
would never be performed; if there is one, the engine has a bug.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import models

from ...db.writer import alias_of
from ...values.text import one_line
from ..registry import explained
from ..wakeable import Wakeable

BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class Explanation:
    """One unfinished row, and the one thing that it waits for. ``waits_for`` is empty if there is none."""

    kind: str
    pk: Any
    row: str
    status: str
    waits_for: str

    def __str__(self) -> str:
        status = f" ({self.status})" if self.status else ""
        waits_for = self.waits_for or "NOTHING (stuck: report a bug)"
        return one_line(f"{self.kind} {self.pk}: {self.row}{status} waits for {waits_for}")


def explain(now: datetime, kinds: Sequence[str] = ()) -> Iterator[Explanation]:
    """Yield every unfinished row with what it waits for. Reads only, in batches.

    Args:
        now: The current time.
        kinds: Names of the kinds of rows to explain. Default: all.
    """
    for model in explained():
        kind = kind_name(model)
        if kinds and kind not in kinds:
            continue
        for row in _in_batches(model.unfinished().using(alias_of(model))):
            yield Explanation(kind, row.pk, str(row), str(getattr(row, "status", "")), row.waits_for(now))


def explainable_kinds() -> list[str]:
    return [kind_name(model) for model in explained()]


def kind_name(model: type[models.Model]) -> str:
    """Return the name for rows of ``model`` in reports, such as "workflow run"."""
    return str(model._meta.verbose_name)


def _in_batches(rows: models.QuerySet[Any]) -> Iterator[Any]:
    """Yield ``rows`` by primary key. Opens no server-side cursor, which not every connection pooler allows."""
    last = None
    while batch := list((rows if last is None else rows.filter(pk__gt=last)).order_by("pk")[:BATCH_SIZE]):
        if issubclass(rows.model, Wakeable):
            rows.model.load_reasons(batch)
        yield from batch
        last = batch[-1].pk
