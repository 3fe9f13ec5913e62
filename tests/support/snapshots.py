"""A database snapshot that stays open, as during a long report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


@contextmanager
def held_snapshot() -> Iterator[None]:
    """Hold a PostgreSQL snapshot open in a separate connection, as a report or a backup does."""
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM automation_workflows_signal")
        yield
    finally:
        other.close()
