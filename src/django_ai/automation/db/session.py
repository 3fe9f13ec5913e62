"""What user code does to the database session that the engine shares with it, and how that is undone.

A step may say ``SET TIME ZONE``, ``SET search_path``, ``USE``, ``PRAGMA``, switch autocommit off or leave a transaction
open. The engine's next statement would then read other times, look for its tables elsewhere, or never be committed.

Nothing is asked of the database to notice it: the statements of user code are looked at before they are sent, and what
Django and the driver know of the session is compared. Only before a statement that changes settings they are read; they
are put back before the progress is written, which may be in the same transaction, and a worker then goes on with a new
connection, for not all that was changed can be read. What is left open is rolled back, and the attempt has failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import OpenTransactionError

_START = r"(?:^|;)(?:\s|--[^\n]*\n|/\*.*?\*/)*"
# Not SET TRANSACTION, which ends with its transaction and must be the first statement in it; not our own NOTIFY.
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
"""Those that belong to the connection, and not to the file."""
_OF_THE_TRANSACTION = ("transaction_", "is_superuser", "in_hot_standby", "session_authorization")


class Session:
    """The database session in which user code runs, for one try.

    ``watched`` is around the user code, perhaps inside the transaction of the try; ``settle`` comes when that is over.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        connection.ensure_connection()  # one that user code makes would be unknown
        self.connection = connection
        self.raw: Any = connection.connection
        self.driver = _driver_state(connection)
        self.before: dict[str, Any] | None = None
        self.lasts = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notice what the block, which is user code, does to the session, and put its settings back. Raises
        ``OpenTransactionError`` where it leaves a transaction open."""
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
                "User code left a transaction open, which is rolled back. Leave each transaction.atomic() block, and "
                "commit what begins with BEGIN or with autocommit off, before you return."
            )
            self._leave(depth, commits, left)
            raise left
        self._put_back()

    def settle(self, *, is_ours: bool) -> None:
        """Undo what is left. ``is_ours``: nobody but this worker uses the connection, so it may be a new one."""
        connection, raw = self.connection, self.connection.connection
        changed = raw is not None and raw is self.raw and _driver_state(connection) != self.driver
        if self.before is None and not self.lasts and not changed:
            return
        try:
            if not changed:
                self._put_back()
        except Exception:
            changed = True
        if not connection.in_atomic_block and (changed or (self.lasts and is_ours)):
            if connection.settings_dict["OPTIONS"].get("pool"):
                with suppress(Exception):
                    raw.close()  # or the pool would give it to the next one
            connection.close()

    def _note(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        text = sql if isinstance(sql, str) else _text_of(sql, self.connection)
        found = _changed_by(text, self.connection.vendor)
        if found is not None:
            self.lasts = self.lasts or not _LOCAL.search(text)
            if self._can_ask():
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

    def _put_back(self) -> None:
        if self.before is not None and self._can_ask():
            _restore(self.connection, self.before)

    def _can_ask(self) -> bool:
        """Return whether this is still the same session, and it answers (in a broken transaction it does not)."""
        connection = self.connection
        is_same = connection.connection is self.raw and not connection.closed_in_transaction
        return is_same and not (connection.in_atomic_block and connection.needs_rollback)

    def _is_open(self) -> bool:
        """Return whether a transaction is open that Django does not know of."""
        connection, raw = self.connection, self.connection.connection
        if raw is None or connection.in_atomic_block:
            return False
        with suppress(Exception):  # closed, perhaps
            if connection.vendor == "postgresql":
                return raw.info.transaction_status.name in ("INTRANS", "INERROR")
            if connection.vendor == "sqlite":
                return bool(raw.in_transaction)
            if self.lasts or _driver_state(connection) != self.driver:
                with _unseen_cursor(connection) as cursor:
                    cursor.execute("SELECT @@in_transaction")
                    return bool(cursor.fetchone()[0])
        return False

    def _leave(self, depth: int, commits: bool, error: BaseException) -> None:
        """Roll back what was begun in the block and is still open."""
        connection = self.connection
        while len(connection.atomic_blocks) > depth:
            connection.atomic_blocks[-1].__exit__(type(error), error, error.__traceback__)
        if commits and self._is_open():
            with suppress(Exception):
                connection.connection.rollback()


@contextmanager
def kept_session(connection: BaseDatabaseWrapper, *, is_ours: bool = False) -> Iterator[None]:
    """Leave the session as it was before the block, which runs user code that is no attempt of its own."""
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
    """Return what Django and the driver know of the session, without asking the database."""
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
def _unseen_cursor(connection: BaseDatabaseWrapper) -> Iterator[Any]:
    """Yield a cursor whose statements nobody who watches the connection takes for the user's."""
    with connection.wrap_database_errors, closing(connection.create_cursor()) as cursor:
        yield cursor


def _settings(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """Return the settings of a session. SHOW takes no snapshot, which a transaction may not have yet."""
    with _unseen_cursor(connection) as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SHOW ROLE")
            (role,) = cursor.fetchone()
            cursor.execute("SHOW ALL")
            rows = [(name, value) for name, value, _ in cursor.fetchall() if not name.startswith(_OF_THE_TRANSACTION)]
            return {"role": role, **dict(rows)}
        cursor.execute("SELECT DATABASE()")
        (database,) = cursor.fetchone()
        cursor.execute(
            # The limit overrides the session's own (sql_select_limit).
            "SELECT variable_name, session_value, variable_type FROM information_schema.system_variables "
            "WHERE variable_scope = 'SESSION' AND read_only = 'NO' AND variable_name <> 'AUTOCOMMIT' LIMIT 10000"
        )
        return {"": database, **{name: _typed(value, kind) for name, value, kind in cursor.fetchall()}}


def _typed(value: str, kind: str) -> Any:
    """Return the value of one of MariaDB's variables as SET takes it."""
    if kind.startswith("DOUBLE"):
        return float(value)
    return int(value) if kind.startswith(("INT", "BIGINT")) else value


def _pragma(connection: BaseDatabaseWrapper, name: str) -> Any:
    with _unseen_cursor(connection) as cursor:
        cursor.execute(f"PRAGMA {name}")
        row = cursor.fetchone()
    return None if row is None else row[0]


def _restore(connection: BaseDatabaseWrapper, before: dict[str, Any]) -> None:
    if connection.vendor == "sqlite":
        with _unseen_cursor(connection) as cursor:
            for name, value in before.items():
                if value is not None:
                    cursor.execute(f"PRAGMA {name} = {value}")
        return
    with _unseen_cursor(connection) as cursor:
        if connection.vendor == "mysql" and before[""] is not None:
            if not connection.in_atomic_block:
                cursor.execute("UNLOCK TABLES")  # inside a transaction it would commit
            cursor.execute(f"USE {connection.ops.quote_name(before[''])}")
    now = _settings(connection)
    with _unseen_cursor(connection) as cursor:
        for name, value in before.items():
            if now.get(name, value) == value:
                continue
            if connection.vendor == "postgresql":
                cursor.execute("SELECT set_config(%s, %s, false)", [name, value])
            else:
                cursor.execute(f"SET SESSION {name} = %s", [value])
