"""Migration operations: the triggers of captured writes, and ``uncaptured`` for migrations that write much; other names
of events."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import router
from django.db.migrations.operations.base import Operation, OperationCategory

from ..exceptions import DefinitionError
from ..queues import renaming
from ..queues.data_operation import DataOperation, check_names, renamed_later, suggestion
from ..queues.models import Maintenance
from .models import CapturedWrite, Event
from .name_map import NameMap
from .names import MAX_NAME, pattern_of
from .renaming import names_in, rename_event
from .sources import declared_names
from .triggers.installation import install, remove
from .triggers.rows import Capture
from .uncaptured import uncaptured

__all__ = ["CaptureWrites", "RenameEvent", "StopCapturingWrites", "uncaptured"]


class _CaptureOperation(Operation):
    reduces_to_sql = True
    reversible = True

    def __init__(self, model: str) -> None:
        if not isinstance(model, str) or model.count(".") != 1:
            raise DefinitionError(
                f'{type(self).__name__}({model!r}) needs the label of a model, as in "bookings.Reservation".'
            )
        self.model = model

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__name__, [self.model], {}

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing: triggers are not part of a model's state."""

    @property
    def label(self) -> str:
        return self.model.lower()

    def _install(self, schema_editor: Any, state: Any) -> None:
        self._run(install, schema_editor, state)

    def _remove(self, schema_editor: Any, state: Any) -> None:
        self._run(remove, schema_editor, state)

    def _run(self, change: Any, schema_editor: Any, state: Any) -> None:
        try:
            model, outbox = state.apps.get_model(self.model), state.apps.get_model(CapturedWrite._meta.label)
        except LookupError as error:
            raise DefinitionError(
                f"{type(self).__name__}({self.model!r}): {error}. The migration must depend on the latest one of that "
                f'app, and on ("{CapturedWrite._meta.app_label}", "0001_initial").'
            ) from error
        alias = schema_editor.connection.alias
        # Not Operation.allow_migrate_model: other programs write to tables that Django does not manage.
        if router.allow_migrate_model(alias, model) and router.allow_migrate_model(alias, outbox):
            change(Capture.of(model), schema_editor)

    @property
    def migration_name_fragment(self) -> str:
        return f"{self.verb.lower()}_writes_{self.model.partition('.')[2].lower()}"

    verb: ClassVar[str] = ""
    captures: ClassVar[bool]

    def describe(self) -> str:
        return f"{self.verb} writes to the table of {self.model}"


class CaptureWrites(_CaptureOperation):
    """Install the triggers that write to the outbox what is written to the table of one model.

    It runs in the transaction of its migration, on PostgreSQL and SQLite. Reversed, it removes the triggers. The
    migration depends on the one that creates the outbox, ``("automation_events", "0001_initial")``, and on the latest
    one of the model. ``manage.py automation_capture`` writes such a migration. Databases that have no table of the
    model, or no outbox, are left alone.

    Args:
        model: The label of the model, as a string. A model with multi-table inheritance needs one operation for each of
            its tables.

    Raises:
        DefinitionError: At import, if the label is invalid.

    Example:
        The migration of an app::

            operations = [CaptureWrites("bookings.Reservation")]
    """

    category = OperationCategory.ADDITION
    verb, captures = "Capture", True

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._install(schema_editor, to_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._remove(schema_editor, from_state)


class StopCapturingWrites(_CaptureOperation):
    """Remove the triggers of a table that ``CaptureWrites`` has installed.

    It runs in the transaction of its migration, on PostgreSQL and SQLite. Reversed, it installs the triggers again.

    Args:
        model: The label of the model, as a string.

    Raises:
        DefinitionError: At import, if the label is invalid.

    Example:
        Events no longer have ``capture=True``::

            operations = [StopCapturingWrites("bookings.Reservation")]
    """

    category = OperationCategory.REMOVAL
    verb, captures = "Stop capturing", False

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._remove(schema_editor, to_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._install(schema_editor, to_state)


class RenameEvent(DataOperation):
    """Rename an event everywhere its name is stored.

    Its rows, what runs wait for, claims and routing keys get the new name, so nothing occurs twice and no wait is lost.
    The name is changed for all models that declare it. It works in short transactions, and a repeated run continues
    where it was interrupted. Reversed, it renames back.

    Args:
        old: The old name, as a string. Of a template or a family the name as it was declared,
            ``"task_done:{{ instance.pk }}"``.
        new: The new name, with the same varying parts.
        merge: Also if there are events under the new name already, as after a release that came without this migration.
            Default False: such a rename is refused.

    Raises:
        DefinitionError: At import, if a name is invalid. At migration, if the code does not declare the new name, if it
            is in use, or for a row that cannot be renamed; the message names the fix.

    Example:
        The migration of an app::

            operations = [RenameEvent("confirmed", "approved")]
    """

    needs = (Event, Maintenance)
    _kind: ClassVar[str] = "event"

    def __init__(self, old: str, new: str, *, merge: bool = False) -> None:
        what = f"RenameEvent({old!r}, {new!r})"
        check_names(what, old, new, MAX_NAME)
        NameMap(old, new, what)
        self.old, self.new, self.merge = old, new, merge

    def describe(self) -> str:
        return f"Rename the event {self.old!r} to {self.new!r}"

    @property
    def migration_name_fragment(self) -> str:
        return "rename_event"

    def apply(self, *, is_backwards: bool) -> int:
        old, new = (self.new, self.old) if is_backwards else (self.old, self.new)
        names = NameMap(old, new, repr(self))
        if not is_backwards:
            self._check(names)
            renaming.check_no_bulk_action(repr(self), self.old)
        renaming.record(self._kind, self.old, self.new)
        changed = rename_event(repr(self), names)
        if is_backwards:
            renaming.forget(self._kind, self.old, self.new)
        else:
            renaming.complete(self._kind, old, new, changed)
        return changed

    def _check(self, names: NameMap) -> None:
        if not _has_events(names):
            return
        declared = declared_names()
        if names.old in declared:
            raise DefinitionError(
                f"{self!r}: the code still declares the event {names.old!r}. Give its EventDefinition the name "
                f"{names.new!r} in the release that has this migration."
            )
        wanted = renamed_later(RenameEvent, names.new)
        if wanted not in declared:
            raise DefinitionError(
                f"{self!r}: no EventDefinition and no FreeEvent is called {wanted!r}. "
                f"{suggestion(wanted, sorted(declared))}"
            )
        new_names = NameMap(names.new, names.old, repr(self))
        if not self.merge and not renaming.is_recorded(self._kind, names.old, names.new) and _has_events(new_names):
            raise DefinitionError(
                f"{self!r}: there are events called {pattern_of(names.new)!r} already. If they are of the same event, "
                "because the new code has run before this migration, add merge=True. Otherwise choose another name."
            )


def _has_events(names: NameMap) -> bool:
    found = Event.objects.filter(names_in(names, "event_name")).values_list("event_name", flat=True)
    if names.is_plain:
        return bool(found.exists())
    return any(names.get(name) is not None for name in found.distinct().iterator())
