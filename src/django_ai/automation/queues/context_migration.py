"""Migrating stored Contexts: a function of a migration transforms those of all runs or agents that may continue.

The first pass transforms and validates without writing, so that a row that cannot be transformed stops the migration
before anything is changed. The second one writes, in short transactions. How far it is, is stored in the transaction of
each: no Context is transformed twice, also if the migration is interrupted and started again. A run that is performed
meanwhile loses its lease, and its attempt begins again with the new Context.

What else a layer keeps of a Context (a history, routes) it writes in ``_write_more``, in the same transaction.
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
from ..exceptions import ContextError
from ..state.contexts import dump_context, load_context
from ..state.encryption import check_readable
from ..state.versions import Versioned
from ..values.digests import digest
from ..values.json_text import encode
from ..values.text import trace_of
from .bites import Progress, ranges
from .lease import revoke
from .models import Maintenance

BITE = 500
"""Keys of rows in one transaction."""
FINISHED = ("completed", "cancelled")
"""The statuses of rows whose Contexts nothing reads any more. A failed row may be resumed."""

Transform = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextMigration:
    """One direction of a migration of Contexts.

    Attributes:
        what: The operation, for messages.
        model: The model of the rows, a ``Run``.
        row_name: The name of the workflow or agent.
        version: Only rows of this version; None: of any.
        target: The definition whose Context the results must fit; None: they are stored as they are.
        stored_version: The version that the rows get; None: they keep theirs.
        transform: The function of the project.
    """

    what: str
    model: type[Any]
    row_name: str
    version: str | None
    target: Versioned | None
    stored_version: str | None
    transform: Transform

    @property
    def name(self) -> str:
        """The name of the row that keeps the position."""
        function = f"{self.transform.__module__}.{getattr(self.transform, '__qualname__', '')}"
        return f"contexts {digest(self.model._meta.label, self.row_name, self.version, self.stored_version, function)}"

    def run(self) -> int:
        """Transform all Contexts, and return how many.

        Raises ``ContextError`` for a row that cannot be transformed, with the field.
        """
        after = self._position()
        for _, _, rows in self._bites(after):
            for row in rows:
                data = self._transformed(row)
                if data is not None:
                    self._check(row, data)
        insert_ignoring(Maintenance, [Maintenance(name=self.name)])
        progress, changed = Progress(self.what, self.model), 0
        for _, upto, rows in self._bites(after):
            with transaction.atomic(using=alias_of(self.model)):
                changed += self._write(rows)
                self._store({"after": upto})
            progress.report(upto, changed)
        self._store(None, completed_at=timezone.now(), done=changed)
        progress.end(changed)
        return changed

    def _bites(self, after: int) -> Iterator[tuple[int, int, models.QuerySet[Any]]]:
        live = self.model._default_manager.exclude(status__in=FINISHED).filter(name=self.row_name)
        for above, upto in ranges(self.model, BITE, after):
            rows = live.filter(pk__gt=above, pk__lte=upto)
            yield above, upto, rows if self.version is None else rows.filter(version=self.version)

    def _position(self) -> int:
        stored = Maintenance.objects.filter(name=self.name).values_list("position", flat=True).first() or {}
        return int(stored.get("after", 0))

    def _store(self, position: Any, **changes: Any) -> None:
        revoke(Maintenance.objects.filter(name=self.name), position=position, **changes)

    def _write(self, rows: models.QuerySet[Any]) -> int:
        now, changed = timezone.now(), 0
        version = {} if self.stored_version is None else {"version": self.stored_version}
        for row in locked(rows).order_by("pk"):
            data = self._transformed(row)
            if data is None:
                continue
            due = {} if row.lease is None else {"wake_at": now}
            changed += revoke(self.model._default_manager.filter(pk=row.pk), data=data, **version, **due)
            self._write_more(row, data)
        return changed

    def _check(self, row: Any, data: dict[str, Any]) -> None:
        """Raise ``AutomationError`` if ``_write_more`` cannot write what belongs to the new Context."""

    def _write_more(self, row: Any, data: dict[str, Any]) -> None:
        """Write what else is kept of the Context of ``row``, which has its old data."""

    def _transformed(self, row: Any) -> Any:
        """Return the new data of a row, or None if it has no Context yet."""
        where = f"{self.what}: {row}"
        check_readable(row.data, where)
        return None if row.has_no_context else self._result(row.data, where)

    def _result(self, data: Any, where: str) -> Any:
        name = getattr(self.transform, "__qualname__", repr(self.transform))
        try:
            found = self.transform(copy.deepcopy(data))
        except AnyDatabaseError:
            raise
        except Exception as error:
            raise ContextError(
                f"{where}: {name} raised for its Context. Nothing of this row was changed. Fix the function, and "
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
