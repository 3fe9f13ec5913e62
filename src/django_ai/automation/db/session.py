"""Restores the database session, which the engine shares with user code, after user code has changed it.

A step may execute ``SET TIME ZONE``, ``SET search_path``, ``USE`` or ``PRAGMA``, switch autocommit off, or leave a
transaction open. The engine's next statement would then read wrong times, find other tables, or never be committed.

Detecting a change costs no query: the statements of user code are checked before they are sent, and the state that
Django and the driver know is compared. Settings are read only before a statement that changes them. They are restored
before the progress is written, which may be in the same transaction. A worker then continues with a new connection,
because some settings cannot be read. A transaction that was left open is rolled back, and the attempt has failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import OpenTransactionError
from .connection_slots import put_down

_START = r"(?:^|;)(?:\s|--[^\n]*\n|/\*.*?\*/)*"
# Not SET TRANSACTION, which ends with its transaction and must be its first statement; not the engine's own NOTIFY.
_CHANGES = {
    "postgresql": rf"{_START}(?:SET(?!\s+(?:LOCAL\s+)?TRANSACTION\b)|RESET|DISCARD)\b"
    r"|\bset_config\s*\((?!'synchronous_commit')",
    "mysql": rf"{_START}(?:SET(?!\s+(?:TRANSACTION|STATEMENT|GLOBAL|PASSWORD)\b)|USE|LOCK|BEGIN|START)\b",
    "sqlite": rf"{_START}PRAGMA\s+(?:\w+\.)?(?P<pragma>\w+)\s*[=(]",
}
_PATTERNS = {vendor: re.compile(text, re.IGNORECASE | re.DOTALL) for vendor, text in _CHANGES.items()}
_LOCAL = re.compile(_START + r"SET\s+LOCAL\b|set_config\s*\(.*,\s*true\s*\)", re.IGNORECASE | re.DOTALL)
_SESSION_PRAGMAS = {
    "automatic_index", "busy_timeout", "cache_size", "cache_spill", "cell_size_check", "defer_foreign_keys",
    "foreign_keys", "ignore_check_constraints", "legacy_alter_table", "query_only", "read_uncommitted",
    "recursive_triggers", "reverse_unordered_selects", "secure_delete", "synchronous", "temp_store", "trusted_schema",
    "writable_schema",
}  # fmt: skip
"""Pragmas that belong to the connection, not to the file."""
_TRANSACTION_SETTINGS = ("transaction_", "is_superuser", "in_hot_standby", "session_authorization")


class Session:
    """The database session in which user code runs, for one attempt.

    ``watched`` surrounds the user code, possibly inside the transaction of the attempt; ``settle`` follows after that
    transaction. ``is_closed``: user code begins without a connection, and one that it uses is not kept.
    """

    def __init__(self, connection: BaseDatabaseWrapper, *, is_closed: bool = False) -> None:
        if not is_closed:
            connection.ensure_connection()  # the state of a connection that user code opens would be unknown
        self.driver = _driver_state(connection)
        if is_closed:
            put_down(connection)
        self.is_closed = is_closed
        self.connection = connection
        self.raw: Any = connection.connection
        self.before: dict[str, Any] | None = None
        self.outlasts_transaction = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Detect changes of the session by the block, which is user code, and restore its settings. Raises
        ``OpenTransactionError`` if it leaves a transaction open."""
        depth = len(self.connection.atomic_blocks)
        commits = not depth and (self.connection.connection is None or self.connection.autocommit)
        with self.connection.execute_wrapper(self._note):
            try:
                yield
            except BaseException as error:
                self._leave(depth, commits, error)
                raise
        if len(self.connection.atomic_blocks) > depth or (commits and self._is_open()):
            left = OpenTransactionError(
                "User code left a transaction open, which is rolled back. Before you return, leave each "
                "transaction.atomic() block, and commit each transaction that began with BEGIN or autocommit off."
            )
            self._leave(depth, commits, left)
            raise left
        self._restore_settings()

    def settle(self, *, is_ours: bool, is_interrupted: bool = False) -> None:
        """Undo remaining changes. ``is_ours``: only this worker uses the connection, so it may be replaced.
        ``is_interrupted``: a request to cancel a statement may still be on its way to the database."""
        connection, raw = self.connection, self.connection.connection
        if self.is_closed:
            is_changed = self.before is not None or self.outlasts_transaction
            if is_changed or is_interrupted or _driver_state(connection) != self.driver:
                connection.close()
            else:
                put_down(connection)
            return
        changed = raw is not None and raw is self.raw and _driver_state(connection) != self.driver
        if self.before is None and not self.outlasts_transaction and not changed:
            return
        try:
            if not changed:
                self._restore_settings()
        except Exception:
            changed = True
        if not connection.in_atomic_block and (changed or (self.outlasts_transaction and is_ours)):
            if connection.settings_dict["OPTIONS"].get("pool"):
                with suppress(Exception):
                    raw.close()  # otherwise the pool would hand it out again
            connection.close()

    def _note(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        text = sql if isinstance(sql, str) else _text_of(sql, self.connection)
        found = _changed_by(text, self.connection.vendor)
        if found is not None:
            self.outlasts_transaction = self.outlasts_transaction or not _LOCAL.search(text)
            if self._is_usable():
                self._remember(found)
        return execute(sql, params, many, context)

    def _remember(self, found: re.Match[str]) -> None:
        if self.connection.vendor == "sqlite":
            name = found["pragma"].lower()
            self.before = self.before or {}
            if name in _SESSION_PRAGMAS and name not in self.before:
                self.before[name] = _pragma(self.connection, name)
        elif self.before is None:
            self.before = _settings(self.connection)

    def _restore_settings(self) -> None:
        if self.before is not None and self._is_usable():
            _restore(self.connection, self.before)

    def _is_usable(self) -> bool:
        """Return whether this is still the same session and accepts queries, which a broken transaction does not."""
        connection = self.connection
        is_same = connection.connection is self.raw and not connection.closed_in_transaction
        return is_same and not (connection.in_atomic_block and connection.needs_rollback)

    def _is_open(self) -> bool:
        """Return whether a transaction is open that Django does not know about."""
        connection, raw = self.connection, self.connection.connection
        if raw is None or connection.in_atomic_block:
            return False
        with suppress(Exception):  # closed, perhaps
            if connection.vendor == "postgresql":
                return raw.info.transaction_status.name in ("INTRANS", "INERROR")
            if connection.vendor == "sqlite":
                return bool(raw.in_transaction)
            if self.outlasts_transaction or _driver_state(connection) != self.driver:
                with _unwrapped_cursor(connection) as cursor:
                    cursor.execute("SELECT @@in_transaction")
                    return bool(cursor.fetchone()[0])
        return False

    def _leave(self, depth: int, commits: bool, error: BaseException) -> None:
        """Roll back transactions that began in the block and are still open."""
        connection = self.connection
        while len(connection.atomic_blocks) > depth:
            connection.atomic_blocks[-1].__exit__(type(error), error, error.__traceback__)
        if commits and self._is_open():
            with suppress(Exception):
                connection.connection.rollback()


@contextmanager
def kept_session(connection: BaseDatabaseWrapper, *, is_ours: bool = False) -> Iterator[None]:
    """Restore the session after the block, which runs user code outside of an attempt."""
    session = Session(connection)
    try:
        with session.watched():
            yield
    finally:
        session.settle(is_ours=is_ours)


def _changed_by(text: str, vendor: str) -> re.Match[str] | None:
    pattern = _PATTERNS.get(vendor)
    if pattern is None:
        return None
    if ";" in text or "set_config" in text.lower():
        return pattern.search(text)
    return pattern.match(text)


def _text_of(sql: Any, connection: BaseDatabaseWrapper) -> str:
    return str(sql.as_string(connection.connection)) if hasattr(sql, "as_string") else str(sql)


def _driver_state(connection: BaseDatabaseWrapper) -> Any:
    """Return what Django and the driver know about the session, without a query."""
    raw: Any = connection.connection
    with suppress(Exception):  # closed, perhaps
        if raw is None:
            return None
        if connection.vendor == "postgresql":
            zone = raw.info.parameter_status("TimeZone")
            return connection.autocommit, raw.autocommit, raw.isolation_level, raw.read_only, raw.deferrable, zone
        if connection.vendor == "mysql":
            return connection.autocommit, raw.get_autocommit()
        return connection.autocommit, raw.isolation_level, raw.row_factory, raw.text_factory
    return None


@contextmanager
def _unwrapped_cursor(connection: BaseDatabaseWrapper) -> Iterator[Any]:
    """Yield a cursor without the wrappers of the connection, so that its statements do not count as the user's."""
    with connection.wrap_database_errors, closing(connection.create_cursor()) as cursor:
        yield cursor


def _settings(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """Return the settings of a session. SHOW takes no snapshot: the transaction may not have taken one yet."""
    with _unwrapped_cursor(connection) as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SHOW ROLE")
            (role,) = cursor.fetchone()
            cursor.execute("SHOW ALL")
            rows = [(name, value) for name, value, _ in cursor.fetchall() if not name.startswith(_TRANSACTION_SETTINGS)]
            return {"role": role, **dict(rows)}
        cursor.execute("SELECT DATABASE()")
        (database,) = cursor.fetchone()
        cursor.execute(
            # LIMIT overrides the session's own sql_select_limit.
            "SELECT variable_name, session_value, variable_type FROM information_schema.system_variables "
            "WHERE variable_scope = 'SESSION' AND read_only = 'NO' AND variable_name <> 'AUTOCOMMIT' LIMIT 10000"
        )
        return {"": database, **{name: _typed(value, kind) for name, value, kind in cursor.fetchall()}}


def _typed(value: str, kind: str) -> Any:
    """Return the value of a MariaDB variable in the type that SET accepts."""
    if kind.startswith("DOUBLE"):
        return float(value)
    return int(value) if kind.startswith(("INT", "BIGINT")) else value


def _pragma(connection: BaseDatabaseWrapper, name: str) -> Any:
    with _unwrapped_cursor(connection) as cursor:
        cursor.execute(f"PRAGMA {name}")
        row = cursor.fetchone()
    return None if row is None else row[0]


def _restore(connection: BaseDatabaseWrapper, before: dict[str, Any]) -> None:
    if connection.vendor == "sqlite":
        with _unwrapped_cursor(connection) as cursor:
            for name, value in before.items():
                if value is not None:
                    cursor.execute(f"PRAGMA {name} = {value}")
        return
    with _unwrapped_cursor(connection) as cursor:
        if connection.vendor == "mysql" and before[""] is not None:
            if not connection.in_atomic_block:
                cursor.execute("UNLOCK TABLES")  # inside a transaction it would commit
            cursor.execute(f"USE {connection.ops.quote_name(before[''])}")
    now = _settings(connection)
    with _unwrapped_cursor(connection) as cursor:
        for name, value in before.items():
            if now.get(name, value) == value:
                continue
            if connection.vendor == "postgresql":
                cursor.execute("SELECT set_config(%s, %s, false)", [name, value])
            else:
                cursor.execute(f"SET SESSION {name} = %s", [value])
