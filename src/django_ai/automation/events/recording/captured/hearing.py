"""Hearing: see the statements of this process that write to captured tables, on every connection, raw SQL too.

A statement that no ``save()`` or ``delete()`` announces leaves its outbox rows to a worker, and the commit rings for
it. In a transaction that has also saved one of the entities, they are recorded at once: all writes of one transaction
are one write, and the outbox rows alone would count again.

On PostgreSQL a comment tells the trigger that this process rings, and what has caused the write. A write without the
comment (another program, COPY, a function) makes the trigger itself notify the workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils import timezone

from ....db.writer import alias_of
from ....queues.causation import cause_now
from ....queues.notifier import ring_after_commit
from ... import capture
from ...models import CapturedWrite
from ...triggers.heard import UNCAPTURED, comment
from ...uncaptured import is_uncaptured
from ..announced import was_announced
from .fetched import fetch_rows
from .outbox import own_entities_after
from .replay import replay_own
from .transactions import Writes, begin_write, execute_uncaptured, mark_rows

_NAME = r'(?:"[^"]+"|`[^`]+`|\w+)'
_ONE_TABLE = re.compile(
    r"\s*(?:(?:INSERT|REPLACE)(?:\s+OR\s+\w+|\s+IGNORE)?\s+INTO|UPDATE(?:\s+OR\s+\w+|\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?)"
    rf"\s+((?:{_NAME}\.)*)({_NAME})",
    re.IGNORECASE,
)
"""A statement that begins with the one table that it writes to."""
_OTHER_WRITES = re.compile(r"\s*(?:WITH|DELETE|UPDATE|MERGE|LOAD|/\*|--)", re.IGNORECASE)
_VERBS = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|LOAD)\b", re.IGNORECASE)


def listen() -> None:
    """Hear the writes of all connections to the database of the automation tables, from now on. Idempotent."""
    connection_created.connect(_on_connection_created, dispatch_uid="django_ai.automation.capture")
    capture.when_forgotten(_names.cache_clear)
    for connection in connections.all(initialized_only=True):
        _attach(connection)


def _on_connection_created(sender: Any, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    _attach(connection)


def _attach(connection: BaseDatabaseWrapper) -> None:
    if connection.alias == alias_of(CapturedWrite) and _hear not in connection.execute_wrappers:
        # At the front: execute_wrapper() removes the last one.
        connection.execute_wrappers.insert(0, _hear)


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    """Return the names of the captured tables, without their schemas."""
    tables = (model._meta.db_table for model in capture.captured_tables())
    return frozenset(table.rpartition('"."')[2].strip('"').lower() for table in tables)


def _writes_to_captured(sql: str) -> bool:
    found = _ONE_TABLE.match(sql)
    if found is not None:
        return found[2].strip('"`').lower() in _names()
    if not _OTHER_WRITES.match(sql) or not _VERBS.search(sql):
        return False
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE) for name in _names())


def _hear(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
    connection: BaseDatabaseWrapper = context["connection"]
    text = sql if isinstance(sql, str) else _text_of(sql, connection)
    if not _writes_to_captured(text):
        return execute(sql, params, many, context)
    if is_uncaptured():
        result = execute_uncaptured(execute, f"{text} {UNCAPTURED}", params, many, context)
        was_announced(connection)
        return result
    if connection.vendor == "sqlite" and not connection.in_atomic_block and cause_now()[0]:
        with transaction.atomic(using=connection.alias):  # the cause is written after the statement
            return _hear(execute, sql, params, many, context)
    writes = begin_write(connection)
    if connection.vendor == "postgresql":
        label, depth = cause_now()
        sql = f"{text} {comment(label, depth, writes.number)}"
    result = execute(sql, params, many, context)
    if was_announced(connection):
        return result
    fetch_rows(context["cursor"])
    mark_rows(connection, writes)
    if writes.saved:
        replay_own(_written_and_saved(writes, connection), connection.alias, timezone.now())
    writes.is_bulk = True
    ring_after_commit(connection.alias, CapturedWrite)
    return result


def _text_of(sql: Any, connection: BaseDatabaseWrapper) -> str:
    """Return a statement as text; psycopg composes it of parts."""
    return str(sql.as_string(connection.connection) if hasattr(sql, "as_string") else sql)


FEW_SAVED = 100
"""As many saved entities are looked up in the outbox after each statement. Of more, only what it has written."""


def _written_and_saved(writes: Writes, connection: BaseDatabaseWrapper) -> Collection[tuple[str, str]]:
    """Return the saved entities that the last statement may have written to."""
    if len(writes.saved) <= FEW_SAVED:
        return writes.saved
    written, writes.seen = own_entities_after(writes.seen, connection)
    return written & writes.saved
