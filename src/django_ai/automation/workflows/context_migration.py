"""Migrating the Contexts of runs: their history, which a rewind reads, is transformed with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..exceptions import AutomationError
from ..queues.context_migration import ContextMigration
from .models import StepExecution


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContextMigration(ContextMigration):
    """One direction of a migration of the Contexts of runs."""

    def _write_more(self, row: Any, data: dict[str, Any]) -> None:
        """Transform what the history keeps of the Context before each visit, so that the run can be rewound. One that
        does not fit stays as it is."""
        for pk, before in StepExecution.objects.filter(run=row.pk, before__isnull=False).values_list("pk", "before"):
            if not isinstance(before, dict) or before.get("version") != row.version or not before.get("data"):
                continue
            try:
                kept = self._result(before["data"], f"step execution #{pk}")
            except AutomationError:
                continue
            changed = {**before, "data": kept, "version": self.stored_version or row.version}
            StepExecution.objects.filter(pk=pk).update(before=changed)
