"""What MariaDB does silently and the other databases do not: it takes "bob" for "Bob", and INSERT IGNORE cuts texts.

Text in our tables is compared exactly: after each ``migrate`` the tables that are not yet so are converted, those of
later migrations, too. And an INSERT IGNORE that ignored anything but a conflict raises what a plain INSERT would have.
"""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db import DataError, IntegrityError, connections, router

EXACT = "utf8mb4_nopad_bin"
"""Case, accents and trailing blanks tell texts apart, as on PostgreSQL and SQLite."""
DUPLICATE = 1062
_REFERENCES = (1048, 1364, 1452)
"""A column that is null or has no default, and a reference to a row that is not there."""
WARNINGS_KEPT = 64
"""How many warnings of a statement MariaDB keeps (its ``max_error_count``)."""


def compare_exactly(sender: AppConfig, using: str, **kwargs: Any) -> None:
    """Give the tables of one of our apps the exact collation. Rewrites a table at most once; elsewhere does nothing."""
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
            [tables, EXACT],
        )
        for (table,) in cursor.fetchall():
            name = connection.ops.quote_name(table)
            cursor.execute(f"ALTER TABLE {name} CONVERT TO CHARACTER SET utf8mb4 COLLATE {EXACT}")


def refuse_what_was_ignored(cursor: Any, what: str) -> None:
    """Raise ``DataError`` or ``IntegrityError`` where the last INSERT IGNORE ignored anything but a conflict.

    The rows are written by then: the caller has a transaction that the error rolls back.
    """
    if not cursor.warning_count:
        return
    cursor.execute("SHOW WARNINGS")
    for _, code, text in cursor.fetchall():
        if code != DUPLICATE:
            error = IntegrityError if code in _REFERENCES else DataError
            raise error(code, f"{what}: {text}")
