"""Migrating stored Contexts: a function of a migration transforms those of all runs that may continue.

The first pass transforms and validates without writing, so that a row that cannot be transformed stops the migration
before anything is changed. The second one writes, in short transactions. How far it is, is stored in the transaction of
each: no Context is transformed twice, also if the migration is interrupted and started again. A run that is performed
meanwhile loses its lease, and its attempt begins again with the new Context.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import Error as AnyDatabaseError
from django.db import models, transaction
from django.utils import timezone

from ..db.inserts import insert_ignoring
from ..db.locks import locked
from ..db.writer import alias_of
from ..exceptions import AutomationError, ContextError
from ..queues.bites import Progress, ranges
from ..queues.lease import revoke
from ..queues.models import Maintenance
from ..state.contexts import dump_context, load_context
from ..state.encryption import check_readable
from ..values.digests import digest
from ..values.json_text import encode
from ..values.text import trace_of
from .definitions import WorkflowDefinition
from .models import StepExecution, WorkflowRun
from .statuses import FINISHED, WorkflowStatus

BITE = 500
"""Keys of runs in one transaction."""

Transform = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextMigration:
    """One direction of a migration of Contexts.

    Attributes:
        what: The operation, for messages.
        workflow: The name that the runs have.
        version: Only runs of this version; None: of any.
        target: The definition whose Context the results must fit; None: they are stored as they are.
        stored_version: The version that the runs get; None: they keep theirs.
        transform: The function of the project.
    """

    what: str
    workflow: str
    version: str | None
    target: WorkflowDefinition | None
    stored_version: str | None
    transform: Transform

    @property
    def name(self) -> str:
        """The name of the row that keeps the position."""
        function = f"{self.transform.__module__}.{getattr(self.transform, '__qualname__', '')}"
        return f"contexts {digest(self.workflow, self.version, self.stored_version, function)}"

    def run(self) -> int:
        """Transform all Contexts, and return how many.

        Raises ``ContextError`` for a row that cannot be transformed, with the field.
        """
        after = self._position()
        for _, _, rows in self._bites(after):
            for run in rows.only("pk", "name", "version", "data", "event", "started_at"):
                self._transformed(run)
        insert_ignoring(Maintenance, [Maintenance(name=self.name)])
        progress, changed = Progress(self.what, WorkflowRun), 0
        for _, upto, rows in self._bites(after):
            with transaction.atomic(using=alias_of(WorkflowRun)):
                changed += self._write(rows)
                self._store({"after": upto})
            progress.report(upto, changed)
        self._store(None, completed_at=timezone.now(), done=changed)
        progress.end(changed)
        return changed

    def _bites(self, after: int) -> Iterator[tuple[int, int, models.QuerySet[WorkflowRun]]]:
        live = ~models.Q(status__in=FINISHED) | models.Q(status=WorkflowStatus.FAILED)  # which may be resumed
        for above, upto in ranges(WorkflowRun, BITE, after):
            rows = WorkflowRun.objects.filter(live, pk__gt=above, pk__lte=upto, name=self.workflow)
            yield above, upto, rows if self.version is None else rows.filter(version=self.version)

    def _position(self) -> int:
        stored = Maintenance.objects.filter(name=self.name).values_list("position", flat=True).first() or {}
        return int(stored.get("after", 0))

    def _store(self, position: Any, **changes: Any) -> None:
        revoke(Maintenance.objects.filter(name=self.name), position=position, **changes)

    def _write(self, rows: models.QuerySet[WorkflowRun]) -> int:
        now, changed = timezone.now(), 0
        version = {} if self.stored_version is None else {"version": self.stored_version}
        for run in locked(rows).order_by("pk").only("pk", "name", "version", "data", "event", "started_at", "lease"):
            data = self._transformed(run)
            if data is None:
                continue
            due = {} if run.lease is None else {"wake_at": now}
            changed += revoke(WorkflowRun.objects.filter(pk=run.pk), data=data, **version, **due)
            self._write_history(run)
        return changed

    def _write_history(self, run: WorkflowRun) -> None:
        """Transform what the history keeps of the Context before each visit, so that the run can be rewound. One that
        does not fit stays as it is."""
        for pk, before in StepExecution.objects.filter(run=run.pk, before__isnull=False).values_list("pk", "before"):
            if not isinstance(before, dict) or before.get("version") != run.version or not before.get("data"):
                continue
            try:
                data = self._result(before["data"], f"step execution #{pk}")
            except AutomationError:
                continue
            kept = {**before, "data": data, "version": self.stored_version or run.version}
            StepExecution.objects.filter(pk=pk).update(before=kept)

    def _transformed(self, run: WorkflowRun) -> Any:
        """Return the new data of a run, or None if it has no Context yet."""
        where = f"{self.what}: {run}"
        check_readable(run.data, where)
        return None if run.has_no_context else self._result(run.data, where)

    def _result(self, data: Any, where: str) -> Any:
        name = getattr(self.transform, "__qualname__", repr(self.transform))
        try:
            found = self.transform(copy.deepcopy(data))
        except AnyDatabaseError:
            raise
        except Exception as error:
            raise ContextError(
                f"{where}: {name} raised for its Context. Nothing of this run was changed. Fix the function, and "
                f"migrate again.\n{trace_of(error)}"
            ) from error
        if not isinstance(found, dict):
            raise ContextError(f"{where}: {name} returned {found!r:.100}; it must return the new dict.")
        try:
            text = encode(found, f"{where}: what {name} returned")
            if self.target is not None:
                text = dump_context(load_context(self.target.context, json.loads(text), where), where)
        except ContextError as error:
            raise ContextError(
                f"{error}\nThat is what {name} returned for it. Fix the function or the Context, and migrate again."
            ) from error
        return json.loads(text)
