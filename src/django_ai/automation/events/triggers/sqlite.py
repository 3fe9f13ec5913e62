"""Triggers on SQLite: one for each kind of write, called for each row.

A trigger names the columns of its table. Django changes most tables by making a new one, and the triggers go with the
old one; and a column that a trigger names cannot be dropped. So a migration replaces them (``schema_changes``). REPLACE
calls no trigger for the row that it replaces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .rows import PREFIX, Capture, Column, columns_of_model, key_sql, literal, outbox_columns, outbox_table, text_sql

OPERATIONS = ("insert", "update", "delete")


def trigger_name(capture: Capture, operation: str) -> str:
    return f"{capture.name}_{operation}"


def install_sql(capture: Capture, connection: BaseDatabaseWrapper) -> list[str]:
    return [*remove_sql(capture, connection), *expected(capture, connection).values()]


def remove_sql(capture: Capture, connection: BaseDatabaseWrapper) -> list[str]:
    names = [connection.ops.quote_name(trigger_name(capture, operation)) for operation in OPERATIONS]
    return [f"DROP TRIGGER IF EXISTS {name}" for name in names]


class _Triggers:
    """The definitions of the triggers on one table, as it is now."""

    def __init__(self, capture: Capture, connection: BaseDatabaseWrapper) -> None:
        self.columns = columns_of(connection, capture.table) or columns_of_model(capture, connection)
        self.outbox = columns_of(connection, outbox_table())
        self.capture, self.connection = capture.with_columns(self.columns), connection
        self.quote: Any = connection.ops.quote_name

    def create_sql(self, operation: str) -> str:
        statements = "; ".join(self._statements(operation))
        return (
            f"CREATE TRIGGER {self.quote(trigger_name(self.capture, operation))} AFTER {operation.upper()} ON "
            f"{self.quote(self.capture.table)} FOR EACH ROW BEGIN {self.capture.comment} {statements}; END"
        )

    def _statements(self, operation: str) -> Iterable[str]:
        key = self.quote(self.capture.key)
        same, other = f" WHERE OLD.{key} IS NEW.{key}", f" WHERE OLD.{key} IS NOT NEW.{key}"
        insertion = self._insert("insert", "NEW", "NULL")
        deletion = self._insert("delete", "OLD", _object(self._pair(column) for column in self.columns))
        if operation == "insert":
            yield insertion
        elif operation == "delete":
            yield deletion
        else:
            yield self._insert("update", "NEW", _object(map(self._pair_if_changed, self.columns))) + same
            yield deletion + other
            yield insertion + other

    def _insert(self, operation: str, row: str, old: str) -> str:
        key = key_sql(self.capture, row, self.connection)
        columns = outbox_columns(self.capture, self.connection, self.outbox, operation, key, old, {})
        return f"INSERT INTO {self.quote(outbox_table())} ({', '.join(columns)}) SELECT {', '.join(columns.values())}"

    def _pair(self, column: Column) -> str:
        """Return the SQL of one member of a JSON object, after a comma. Concatenated, because functions take no more
        than 127 arguments."""
        name, value = column.name.replace("\\", "\\\\").replace('"', '\\"'), f"OLD.{self.quote(column.name)}"
        text = f"CASE typeof({value}) WHEN 'blob' THEN hex({value}) ELSE {text_sql(value, self.connection)} END"
        return f"""{literal(f',"{name}":')} || json_quote({text})"""

    def _pair_if_changed(self, column: Column) -> str:
        name = self.quote(column.name)
        return f"CASE WHEN OLD.{name} COLLATE BINARY IS NEW.{name} THEN '' ELSE {self._pair(column)} END"


def _object(pairs: Iterable[str]) -> str:
    return f"'{{' || substr({' || '.join(pairs)}, 2) || '}}'"


def columns_of(connection: BaseDatabaseWrapper, table: str) -> list[Column]:
    """Return the columns of ``table``; none: there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA table_xinfo({connection.ops.quote_name(table)})")
        # The third kind of hidden columns belongs to virtual tables; the others are generated.
        return [Column(name, bool(key)) for _, name, _, _, _, key, hidden in cursor.fetchall() if hidden != 1]


def installed(connection: BaseDatabaseWrapper, table: str) -> dict[str, str] | None:
    """Return the triggers on ``table``, each with its definition. None: there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name = %s", [table])
        if cursor.fetchone() is None:
            return None
        cursor.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = %s AND name LIKE %s",
            [table, f"{PREFIX}%"],
        )
        return dict(cursor.fetchall())


def bodies(connection: BaseDatabaseWrapper) -> list[tuple[str, str]]:
    """Return the table and the definition of each trigger of captures."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tbl_name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE %s", [f"{PREFIX}%"]
        )
        return list(cursor.fetchall())


def expected(capture: Capture, connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return what ``installed`` returns where the triggers are current."""
    triggers = _Triggers(capture, connection)
    return {trigger_name(capture, operation): triggers.create_sql(operation) for operation in OPERATIONS}
