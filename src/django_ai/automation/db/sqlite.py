"""SQLite with several writing processes: write-ahead log, IMMEDIATE transactions, a busy timeout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils.functional import cached_property

from ..conf import conf
from ..exceptions import SettingsError


def tune_sqlite(sender: Any, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """Configure a new SQLite connection for several writing processes.

    With write-ahead logging, readers and the writer do not block each other. IMMEDIATE transactions take the write lock
    at BEGIN, where SQLite waits for it. A deferred transaction that reads first and writes later fails immediately with
    "database is locked" (https://www.sqlite.org/isolation.html). Options that the project sets itself are kept.
    """
    if connection.vendor != "sqlite" or _is_ours is None or not _is_ours(connection.alias):
        return
    try:
        if not conf().SQLITE_TUNING:
            return
    except SettingsError:
        return  # Django's checks connect before the check of the settings reports the error
    options = connection.settings_dict.get("OPTIONS", {})
    if options.get("transaction_mode") is None:
        connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]
    with connection.cursor() as cursor:
        if "timeout" not in options:
            cursor.execute("PRAGMA busy_timeout = 20000")
        if "init_command" not in options and not connection.is_in_memory_db():  # type: ignore[attr-defined]
            # A read-only database keeps its mode.
            with contextlib.suppress(OperationalError):
                cursor.execute("PRAGMA journal_mode = WAL")


def _supports_json(features: Any) -> bool:
    with features.connection.cursor() as cursor:
        try:
            cursor.execute("SELECT JSON('{}')")
        except OperationalError:
            return False
    return True


_is_ours: Callable[[str], bool] | None = None


def connect_tuning(is_ours: Callable[[str], bool]) -> None:
    """Tune each new SQLite connection whose alias satisfies ``is_ours``: that of the automation tables."""
    global _is_ours
    _is_ours = is_ours
    connection_created.connect(tune_sqlite, dispatch_uid="django_ai.automation.tune_sqlite")
    if any(each.vendor == "sqlite" for each in connections.all()):
        from django.db.backends.sqlite3.features import DatabaseFeatures

        # Django tests for JSON in a transaction. An IMMEDIATE one waits for the write lock, and Django would read
        # "database is locked" as "no JSON".
        probe: Any = cached_property(_supports_json)
        probe.__set_name__(DatabaseFeatures, "supports_json_field")
        DatabaseFeatures.supports_json_field = probe  # type: ignore[method-assign]
