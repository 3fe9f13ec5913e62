"""Connections: close a broken one, make a dedicated one outside the pool, detect an unused transaction and a pooler."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

_IDLE = 0
"""The status of a session without a transaction: PQTRANS_IDLE."""


def was_closed(connection: BaseDatabaseWrapper) -> bool:
    """Return whether user code has closed ``connection`` inside the open ``atomic`` block. Django itself also closes a
    connection that the server has ended; that does not count."""
    raw: Any = connection.connection
    if not connection.closed_in_transaction or raw is None:
        return False
    if connection.vendor == "postgresql":
        return not raw.broken
    return connection.vendor == "sqlite" or not connection.errors_occurred


def close_if_broken(connection: BaseDatabaseWrapper) -> None:
    """Close ``connection`` after a failure if it is no longer usable; the next query connects again."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def is_untouched_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the outermost ``atomic`` block is open and has sent nothing yet, so that no BEGIN is needed.

    psycopg sends BEGIN with the first statement. A commit hook counts as a use: it must not run before the progress is
    committed.
    """
    if connection.vendor != "postgresql" or len(connection.atomic_blocks) != 1 or connection.run_on_commit:
        return False
    raw = connection.connection
    return raw is not None and raw.info.transaction_status.name == "IDLE"


def is_autocommitted(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the next statement is a transaction of its own on PostgreSQL: no transaction is open, not even one
    that Django does not know about."""
    if connection.in_atomic_block:
        return False
    connection.ensure_connection()
    raw: Any = connection.connection
    return bool(raw.autocommit) and int(raw.info.transaction_status) == _IDLE


def dedicated_connection(alias: str) -> BaseDatabaseWrapper:
    """Return a new connection to the database ``alias`` outside psycopg's pool: for connections that are held for long,
    or that must not wait for workers."""
    connection = connections[alias].copy()
    connection.settings_dict.get("OPTIONS", {}).pop("pool", None)
    return connection


def is_pooled(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a pooler is between psycopg 3 and PostgreSQL: the server process that answers is not the one that
    the driver knows. The query is one of the engine's own, so wrappers and the query log do not see it."""
    with connection.wrap_database_errors, closing(connection.create_cursor()) as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (answering,) = cursor.fetchone()
    raw: Any = connection.connection
    return bool(answering != raw.pgconn.backend_pid)
