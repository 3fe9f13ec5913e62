"""Triggers on MariaDB: one for each kind of write, called for each row.

A trigger names the columns of its table, and writes fail if one of them is gone. So a migration replaces the triggers
right after it has changed the table (``schema_changes``). Cascades of foreign keys and TRUNCATE call no triggers.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .rows import PREFIX, Capture, Column, columns_of_model, key_sql, literal, outbox_columns, outbox_table, text_sql

OPERATIONS = ("insert", "update", "delete")
EXTRA = {
    "transaction": "@automation_transaction",
    "caused_by": "coalesce(@automation_cause, '')",
    "depth": "coalesce(@automation_depth, 0)",
}


def trigger_name(capture: Capture, operation: str) -> str:
    return f"{capture.name}_{operation}"


def install_sql(capture: Capture, connection: BaseDatabaseWrapper) -> list[str]:
    """Return the statements that install the triggers. Each replaces the one before it: no write is missed."""
    quote = connection.ops.quote_name
    return [
        f"CREATE OR REPLACE TRIGGER {quote(name)} AFTER {name.rpartition('_')[2].upper()} ON {quote(capture.table)} "
        f"FOR EACH ROW {body}"
        for name, body in expected(capture, connection).items()
    ]


def remove_sql(capture: Capture, connection: BaseDatabaseWrapper) -> list[str]:
    names = [connection.ops.quote_name(trigger_name(capture, operation)) for operation in OPERATIONS]
    return [f"DROP TRIGGER IF EXISTS {name}" for name in names]


class _Triggers:
    """The bodies of the triggers on one table, as it is now."""

    def __init__(self, capture: Capture, connection: BaseDatabaseWrapper) -> None:
        self.columns = columns_of(connection, capture.table) or columns_of_model(capture, connection)
        self.outbox = columns_of(connection, outbox_table())
        self.capture, self.connection = capture.with_columns(self.columns), connection
        self.quote: Any = connection.ops.quote_name

    def body(self, operation: str) -> str:
        pairs = [f"{literal(column.name)}, {self._old_text(column)}" for column in self.columns]
        deletion = self._insert("delete", "OLD", f"JSON_OBJECT({', '.join(pairs)})")
        insertion = self._insert("insert", "NEW", "NULL")
        statements = {"insert": insertion, "delete": deletion}.get(operation)
        if statements is None:
            key, update = self.quote(self.capture.key), self._insert("update", "NEW", self._changed())
            # As bytes, because the collation may take two keys for equal.
            statements = f"IF BINARY OLD.{key} <=> BINARY NEW.{key} THEN {update}; ELSE {deletion}; {insertion}; END IF"
        return f"BEGIN {self.capture.comment} IF @automation_uncaptured IS NULL THEN {statements}; END IF; END"

    def _insert(self, operation: str, row: str, old: str) -> str:
        key = key_sql(self.capture, row, self.connection)
        columns = outbox_columns(self.capture, self.connection, self.outbox, operation, key, old, EXTRA)
        return f"INSERT INTO {self.quote(outbox_table())} ({', '.join(columns)}) VALUES ({', '.join(columns.values())})"

    def _changed(self) -> str:
        """Return the SQL of the JSON with the old values of the columns that the update has changed."""
        parts = []
        for column in self.columns:
            name, exactly = self.quote(column.name), "BINARY " if column.is_text else ""
            pair = f"JSON_OBJECT({literal(column.name)}, {self._old_text(column)})"
            parts.append(f"IF({exactly}OLD.{name} <=> {exactly}NEW.{name}, '{{}}', {pair})")
        return f"JSON_MERGE_PRESERVE('{{}}', {', '.join(parts)})"

    def _old_text(self, column: Column) -> str:
        value = f"OLD.{self.quote(column.name)}"
        return f"hex({value})" if column.is_binary else text_sql(value, self.connection)


def columns_of(connection: BaseDatabaseWrapper, table: str) -> list[Column]:
    """Return the columns of ``table``; none: there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name, column_key = 'PRI', character_set_name IS NOT NULL, "
            "data_type LIKE '%%blob' OR data_type LIKE '%%binary' OR data_type IN ('geometry', 'point', 'linestring', "
            "'polygon', 'multipoint', 'multilinestring', 'multipolygon', 'geometrycollection') "
            "FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %s "
            "ORDER BY ordinal_position",
            [table],
        )
        return [Column(name, bool(key), bool(text), bool(binary)) for name, key, text, binary in cursor.fetchall()]


def installed(connection: BaseDatabaseWrapper, table: str) -> dict[str, str] | None:
    """Return the triggers on ``table``, each with its body. None: there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s "
            "AND table_type = 'BASE TABLE'",
            [table],
        )
        if cursor.fetchone() is None:
            return None
        cursor.execute(
            "SELECT trigger_name, action_statement FROM information_schema.triggers "
            "WHERE event_object_schema = DATABASE() AND event_object_table = %s AND trigger_name LIKE %s",
            [table, f"{PREFIX}%"],
        )
        return dict(cursor.fetchall())


def bodies(connection: BaseDatabaseWrapper) -> list[tuple[str, str]]:
    """Return the table and the body of each trigger of captures."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT event_object_table, action_statement FROM information_schema.triggers "
            "WHERE event_object_schema = DATABASE() AND trigger_name LIKE %s",
            [f"{PREFIX}%"],
        )
        return list(cursor.fetchall())


def expected(capture: Capture, connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return what ``installed`` returns where the triggers are current."""
    triggers = _Triggers(capture, connection)
    return {trigger_name(capture, operation): triggers.body(operation) for operation in OPERATIONS}
