"""Migration operations that install and remove the triggers of captured writes, and ``uncaptured`` for migrations that
write much."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import router
from django.db.migrations.operations.base import Operation, OperationCategory

from ..exceptions import DefinitionError
from .models import CapturedWrite
from .triggers.installation import install, remove
from .triggers.rows import Capture
from .uncaptured import uncaptured

__all__ = ["CaptureWrites", "StopCapturingWrites", "uncaptured"]


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
