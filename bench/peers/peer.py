"""What a driver tells ``measure`` of its contestant. Needs nothing but the standard library."""

from __future__ import annotations

import os
from typing import Any

TEXT = "a text of one hundred characters " * 3 + "."
"""Each call carries its number and this text."""


class MissingError(Exception):
    """Something that the contestant needs is not there: a program, for example."""


class Peer:
    """One contestant. A call that has been started survives a crash as far as the contestant promises that."""

    def __init__(self, variant: str, processes: int) -> None:
        self.variant = variant
        self.processes = processes

    def describe(self) -> dict[str, Any]:
        """Return versions, and everything that is not the contestant's default."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Create the tables, in a new database."""

    def clear(self) -> None:
        """Delete all calls, unfinished and finished."""
        raise NotImplementedError

    def start(self, number: int) -> None:
        """Start one call of one step. It is recorded when this returns."""
        raise NotImplementedError

    def start_five(self, number: int) -> None:
        """Start one call of five durable steps, which note ``number`` to ``number + 4``."""
        raise NotImplementedError

    def backlog(self, numbers: range, *, five: bool = False) -> None:
        """Start many calls, as fast as the contestant can. Not measured."""
        for number in numbers:
            (self.start_five if five else self.start)(number)

    def workers(self) -> list[list[str]]:
        """Return the commands whose processes perform calls."""
        raise NotImplementedError

    def unfinished(self) -> int:
        """Return how many calls the contestant has not yet recorded as finished."""
        raise NotImplementedError

    def fill(self, number: int) -> None:
        """Insert ``number`` finished calls, as its own history keeps them."""
        raise NotImplementedError

    def measure(self, measurement: str, number: int) -> dict[str, Any] | None:
        """Return the figures, if this contestant measures in a way of its own."""
        return None


def postgresql_rows(*statements: str) -> list[tuple[Any, ...]]:
    """Execute statements on the contestant's database; return the rows of the last one."""
    import psycopg

    with psycopg.connect(autocommit=True) as connection:
        for each in statements[:-1]:
            connection.execute(each)
        cursor = connection.execute(statements[-1])
        return cursor.fetchall() if cursor.description else []


def conninfo() -> dict[str, str]:
    """Return host, port, user, password and name of the contestant's database."""
    return {
        name: os.environ.get(variable, "")
        for name, variable in (
            ("host", "PGHOST"),
            ("port", "PGPORT"),
            ("user", "PGUSER"),
            ("password", "PGPASSWORD"),
            ("dbname", "PGDATABASE"),
        )
    }
