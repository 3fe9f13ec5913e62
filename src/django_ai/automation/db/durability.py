"""Commits that do not wait for the disk, on PostgreSQL, for writes whose loss loses nothing.

The statement itself asks for it, for its own transaction (``synchronous_commit``). A later commit of any session that
waits for the disk makes such a commit durable, too. So only a crash of the server can lose it, together with
everything that was committed after it.
"""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper

from .connections import is_autocommitted

NOT_DURABLE = "set_config('synchronous_commit', 'off', true)"
"""An expression for a statement that is a transaction of its own, whose commit then does not wait."""


def not_durable_if(connection: BaseDatabaseWrapper) -> str:
    """Return a condition that is true, and lets the commit of the next statement not wait; empty in a transaction,
    which would not wait as a whole, and on other databases. It must be evaluated for the rows that are written."""
    return f" AND {NOT_DURABLE} = 'off'" if connection.vendor == "postgresql" and is_autocommitted(connection) else ""
