"""A savepoint around user code that is called in a transaction of its caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction


@contextmanager
def savepoint_on_query(alias: str) -> Iterator[None]:
    """Open a savepoint before the first query inside the block, which is user code.

    So a database error in it does not break the transaction of the caller. Code that does not query costs nothing.
    """
    connection = connections[alias]
    atomic = transaction.atomic(using=connection.alias)
    entered = False

    def guard(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        nonlocal entered
        if not entered:
            entered = True
            atomic.__enter__()
        return execute(sql, params, many, context)

    with connection.execute_wrapper(guard):
        try:
            yield
        except BaseException as error:
            if entered:
                atomic.__exit__(type(error), error, error.__traceback__)
            raise
        else:
            if entered:
                atomic.__exit__(None, None, None)
