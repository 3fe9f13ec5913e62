"""A snapshot that stays open, as that of a long report does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


@contextmanager
def held_snapshot() -> Iterator[None]:
    """Hold a snapshot of PostgreSQL open in a connection of its own, as a report or a backup does."""
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM automation_workflows_signal")
        yield
    finally:
        other.close()
