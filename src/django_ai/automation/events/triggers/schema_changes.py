"""Keep triggers while migrations change the schema.

On MariaDB and SQLite triggers name the columns of their table and of the outbox. Without this a migration that drops a
captured column would fail (SQLite), or all writes after it would (MariaDB), and after SQLite has made a new table the
writes of the same ``migrate`` would not be captured. On PostgreSQL triggers name only the primary key.

The schema editor of the database is replaced by one that looks at the statements it executes. What triggers capture is
read from the triggers themselves, because models of a migration may have other names than those of the code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from ..uncaptured import uncaptured
from . import postgresql
from .installation import BACKENDS, install, installed_captures
from .rows import Capture, outbox_table

_NAME = r'((?:(?:"[^"]+"|`[^`]+`|\w+)\.)?)("[^"]+"|`[^`]+`|\w+)'
_CHANGE = re.compile(rf"\s*(ALTER|DROP|RENAME)\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?{_NAME}", re.IGNORECASE)
_DEFAULT = re.compile(
    rf"\s*UPDATE\s+{_NAME}\s+SET\s+{_NAME}\s+=\s+%s(?:\s+WHERE\s+{_NAME}\s+IS\s+NULL)?\s*"
    r"(?:;\s*SET CONSTRAINTS ALL IMMEDIATE)?;?\s*",
    re.IGNORECASE,
)
"""How Django gives existing rows the default of a column. It is no write that concerns events."""
_NEW_NAME = re.compile(rf"\s+(?:RENAME\s+)?TO\s+{_NAME}", re.IGNORECASE)


def keep_triggers() -> None:
    """Keep triggers when migrations of this process change the schema. Idempotent."""
    connection_created.connect(_on_connection_created, dispatch_uid="django_ai.automation.triggers")
    for connection in connections.all(initialized_only=True):
        _replace_editor(connection)


def _on_connection_created(sender: Any, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    _replace_editor(connection)


def _replace_editor(connection: BaseDatabaseWrapper) -> None:
    editor: Any = connection.SchemaEditorClass
    if connection.vendor in BACKENDS and not getattr(editor, "keeps_triggers", False):
        connection.SchemaEditorClass = _keeping(editor)


@lru_cache(maxsize=8)
def _keeping(editor: type[Any]) -> type[Any]:
    class TriggerKeepingEditor(editor):  # type: ignore[misc]
        keeps_triggers = True

        def execute(self, sql: Any, params: Any = ()) -> None:
            if params and _DEFAULT.fullmatch(str(sql)):
                with uncaptured():
                    super().execute(sql, params)
                return
            change = None if self.collect_sql else _CHANGE.match(str(sql))
            if change is None:
                super().execute(sql, params)
                return
            table = change[3].strip('"`')
            target = _NEW_NAME.match(str(sql), change.end())
            kept = _before(self, change[1].upper(), table)
            super().execute(sql, params)
            _after(self, kept, table, target[2].strip('"`') if target else table, str(sql))

    TriggerKeepingEditor.__name__ = editor.__name__
    TriggerKeepingEditor.__qualname__ = editor.__qualname__
    return TriggerKeepingEditor


def _before(editor: Any, verb: str, table: str) -> Sequence[Capture]:
    """Return the captures whose triggers the statement may break, and remove triggers that SQLite would refuse."""
    connection = editor.connection
    if verb == "DROP" and connection.vendor != "sqlite":
        return ()  # the triggers go with the table
    found = installed_captures(connection, None if table == outbox_table() else table)
    if verb == "DROP":
        if not found or not BACKENDS["sqlite"].columns_of(connection, f"new__{table}"):
            return ()
        editor.__dict__.setdefault("_captures_of_old_tables", {})[table] = found
    if connection.vendor == "sqlite":
        for capture in found:
            for name in BACKENDS["sqlite"].installed(connection, capture.table):
                editor.execute(f"DROP TRIGGER {connection.ops.quote_name(name)}", params=None)
    return () if verb == "DROP" else found


def _after(editor: Any, kept: Sequence[Capture], table: str, target: str, sql: str) -> None:
    """Install the triggers again. ``target``: the name of the table now."""
    if table == f"new__{target}":
        kept = [*kept, *editor.__dict__.get("_captures_of_old_tables", {}).pop(target, ())]
    for capture in kept:
        if editor.connection.vendor != "postgresql" or capture.table == table != target:
            install(replace(capture, table=target if capture.table == table else capture.table), editor)
        elif table == outbox_table() or "RENAME" in sql.upper():
            editor.execute(postgresql.function_sql(capture, editor.connection), params=None)
