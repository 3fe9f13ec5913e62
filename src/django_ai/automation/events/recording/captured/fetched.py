"""Fetch what a statement returns right after it, on SQLite: until its rows are fetched, no savepoint can be opened and
nothing can be committed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any


def fetch_rows(wrapper: Any) -> None:
    """Fetch the rows that the statement just executed by a cursor of Django returns; the cursor still hands them
    out."""
    if wrapper.db.vendor == "sqlite" and wrapper.cursor.description is not None:
        wrapper.cursor = _FetchedCursor(wrapper)


class _FetchedCursor:
    """A cursor of the driver whose rows are fetched. With its next statement the original takes its place again."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper, self._cursor = wrapper, wrapper.cursor
        self._rows: Iterator[Any] = iter(wrapper.cursor.fetchall())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        return list(islice(self._rows, self._cursor.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def execute(self, *args: Any) -> Any:
        self._wrapper.cursor = self._cursor
        return self._cursor.execute(*args)

    def executemany(self, *args: Any) -> Any:
        self._wrapper.cursor = self._cursor
        return self._cursor.executemany(*args)
