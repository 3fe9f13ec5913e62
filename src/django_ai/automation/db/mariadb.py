"""Two differences of MariaDB: by default "bob" equals "Bob", and INSERT IGNORE truncates strings.

Strings in the automation tables are compared exactly: after each ``migrate``, tables without the exact collation are
converted, including those of later migrations. And if an INSERT IGNORE ignored anything but a conflict, the error of a
plain INSERT is raised.
"""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db import DataError, IntegrityError, connections, router

EXACT_COLLATION = "utf8mb4_nopad_bin"
"""Case, accents and trailing blanks are significant, as on PostgreSQL and SQLite."""
DUPLICATE_KEY_CODE = 1062
_INTEGRITY_CODES = (1048, 1364, 1452)
"""A column that is null or has no default, and a reference to a row that does not exist."""
MAX_WARNINGS = 64
"""How many warnings of a statement MariaDB keeps (its ``max_error_count``)."""


def compare_exactly(sender: AppConfig, using: str, **kwargs: Any) -> None:
    """Give the tables of an automation app the exact collation. Rewrites a table at most once; only on MariaDB."""
    connection = connections[using]
    if not getattr(connection, "mysql_is_mariadb", False) or not sender.name.startswith("django_ai.automation."):
        return
    tables = [model._meta.db_table for model in sender.get_models() if router.allow_migrate_model(using, model)]
    if not tables:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = DATABASE() "
            "AND table_name IN %s AND collation_name NOT IN ('utf8mb4_bin', %s)",
            [tables, EXACT_COLLATION],
        )
        for (table,) in cursor.fetchall():
            name = connection.ops.quote_name(table)
            cursor.execute(f"ALTER TABLE {name} CONVERT TO CHARACTER SET utf8mb4 COLLATE {EXACT_COLLATION}")


def raise_ignored_errors(cursor: Any, what: str) -> None:
    """Raise ``DataError`` or ``IntegrityError`` if the last INSERT IGNORE ignored anything but a conflict.

    The rows are already written: the caller has a transaction, which the error rolls back.
    """
    if not cursor.warning_count:
        return
    cursor.execute("SHOW WARNINGS")
    for _, code, text in cursor.fetchall():
        if code != DUPLICATE_KEY_CODE:
            error = IntegrityError if code in _INTEGRITY_CODES else DataError
            raise error(code, f"{what}: {text}")
