"""Death in the middle: a process that dies at one of its SQL statements, in this process.

From the statement on nothing more reaches the database, so nothing is given back, told or cleaned up; an open
transaction is rolled back, as the server does for a connection that broke.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from django_ai.automation.events import occurrence
from django_ai.automation.queues import notifier


class Died(BaseException):
    """This process is dead."""


@contextmanager
def dying(at: int) -> Iterator[None]:
    """Let the block die at its statement number ``at`` (from 1), or come to its end if it has fewer."""
    statements = 0

    def perhaps(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        nonlocal statements
        if str(sql).startswith(("ROLLBACK", "RELEASE", "SAVEPOINT")):
            return execute(sql, params, many, context)
        statements += 1
        if statements >= at:
            raise Died
        return execute(sql, params, many, context)

    try:
        with connection.execute_wrapper(perhaps):
            yield
    except Died:
        pass
    finally:
        if statements >= at:
            # What a dead process knew is gone with it.
            connection.run_on_commit = []
            connection.close()
            occurrence._batches.clear()
            notifier._rings.clear()
