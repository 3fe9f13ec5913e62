"""Cancelling a statement that a database is executing for another thread."""

from __future__ import annotations

import logging
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .connections import dedicated_connection

CANCEL_SECONDS = 5.0
"""How long a server is asked to cancel a statement."""

logger = logging.getLogger("django_ai.automation")


def cancel_statement(connection: BaseDatabaseWrapper, session: int | None) -> None:
    """Cancel the current statement of ``connection``, from another thread, if its driver can. ``session``: MariaDB's id
    of its session. Never raises."""
    raw: Any = connection.connection
    try:
        if raw is None:
            return
        if connection.vendor == "postgresql" and raw.info.transaction_status.name == "ACTIVE":
            # psycopg 3.1 has only cancel(), which holds Python's lock while a server that is silent is asked.
            raw.cancel_safe(timeout=CANCEL_SECONDS) if hasattr(raw, "cancel_safe") else raw.cancel()
        elif connection.vendor == "sqlite":
            raw.interrupt()
        elif session is not None:
            other = dedicated_connection(connection.alias)
            try:
                with other.cursor() as cursor:
                    # In an idle session, KILL QUERY would hit the next statement.
                    cursor.execute("SELECT command FROM information_schema.processlist WHERE id = %s", [session])
                    if cursor.fetchone() == ("Query",):
                        cursor.execute(f"KILL QUERY {session}")
            finally:
                other.close()
    except Exception as error:
        logger.warning("The statement of an interrupted attempt could not be cancelled: %s", error)
