"""Install the triggers of captured tables, remove them, and compare what is installed with what the code needs.

``migrate`` ends by making triggers current: those that the migrations install, whatever has happened to them since,
and those of tables of apps without migrations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from types import ModuleType
from typing import Any

from django.apps import AppConfig
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader

from ...db.writer import alias_of
from .. import capture as captures
from ..models import CapturedWrite, Event
from . import mariadb, postgresql, sqlite
from .migrations import captured_by
from .rows import Capture, outbox_table

BACKENDS: dict[str, ModuleType] = {"postgresql": postgresql, "mysql": mariadb, "sqlite": sqlite}


class Installation(StrEnum):
    """How the triggers of a captured table are.

    Attributes:
        CURRENT: They are what this code installs.
        OUTDATED: They are there, and not what this code installs: the table or the outbox has changed, or a trigger is
            missing or disabled.
        MISSING: There are none: writes are not captured.
        NO_TABLE: The table does not exist.
    """

    CURRENT = "current"
    OUTDATED = "outdated"
    MISSING = "missing"
    NO_TABLE = "no table"


def needed_captures() -> list[Capture]:
    """Return the captures that the declared events need, one for each table."""
    return [Capture.of(model) for model in captures.captured_tables()]


def installed_captures(connection: BaseDatabaseWrapper, table: str | None = None) -> list[Capture]:
    """Return what is captured by the triggers that are there, of all tables or of one."""
    bodies: list[tuple[str, str]] = BACKENDS[connection.vendor].bodies(connection)
    found = {name: Capture.of_trigger(name, body) for name, body in bodies if table in (None, name)}
    return [capture for capture in found.values() if capture is not None]


def install(capture: Capture, schema_editor: Any) -> None:
    """Install the triggers of a table, in place of those that are there."""
    _execute(_backend(schema_editor).install_sql(capture, schema_editor.connection), capture, schema_editor)


def remove(capture: Capture, schema_editor: Any) -> None:
    """Remove the triggers of a table."""
    _execute(_backend(schema_editor).remove_sql(capture, schema_editor.connection), capture, schema_editor)


def _execute(statements: Sequence[str], capture: Capture, schema_editor: Any) -> None:
    for statement in [*_removals(capture, schema_editor), *statements]:
        schema_editor.execute(statement, params=None)


def _backend(schema_editor: Any) -> Any:
    return BACKENDS[schema_editor.connection.vendor]


def _removals(capture: Capture, schema_editor: Any) -> Iterator[str]:
    """Yield the statements that remove triggers with other names: those of a table that was renamed."""
    connection = schema_editor.connection
    if schema_editor.collect_sql or connection.vendor == "postgresql":  # there the names do not depend on the table
        return
    backend = _backend(schema_editor)
    for name in (backend.installed(connection, capture.table) or {}).keys() - backend.expected(capture, connection):
        yield f"DROP TRIGGER IF EXISTS {connection.ops.quote_name(name)}"


def installation_of(capture: Capture, connection: BaseDatabaseWrapper) -> Installation:
    """Return how the triggers of a table are."""
    backend = BACKENDS[connection.vendor]
    found = backend.installed(connection, capture.table)
    if found is None or backend.installed(connection, outbox_table()) is None:
        return Installation.NO_TABLE
    if not found:
        return Installation.MISSING
    return Installation.CURRENT if found == backend.expected(capture, connection) else Installation.OUTDATED


def stray_captures(connection: BaseDatabaseWrapper) -> list[Capture]:
    """Return the captures of tables that have triggers although no declared event needs them."""
    needed = {table_name(capture.table) for capture in needed_captures()}
    return [capture for capture in installed_captures(connection) if capture.table not in needed]


def table_name(table: str) -> str:
    """Return the name of ``table`` without the schema, which a ``db_table`` may have: ``'app"."order'``."""
    return table.rpartition('"."')[2]


def after_migrate(sender: AppConfig, using: str, **kwargs: Any) -> None:
    """Make triggers current that the migrations have installed, or that no migration can install or remove."""
    if using != alias_of(CapturedWrite):
        return
    connection = connections[using]
    if "plan" not in kwargs:  # a flush, whose deletions were captured
        _forget_flushed(using)
        return
    outdated = [each for each in needed_captures() if _is_outdated(each, connection)]
    strays = stray_captures(connection)
    if not outdated and not strays:
        return
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    wanted = captured_by(loader, applied_only=True)
    with connection.schema_editor() as schema_editor:
        for capture in outdated:
            model = capture.model
            assert model is not None
            is_wanted = capture.label in wanted or model._meta.app_label in loader.unmigrated_apps
            if is_wanted and router.allow_migrate_model(using, model):
                install(capture, schema_editor)
        for capture in strays:
            if capture.label.partition(".")[0] in loader.unmigrated_apps:
                remove(capture, schema_editor)


def _is_outdated(capture: Capture, connection: BaseDatabaseWrapper) -> bool:
    return installation_of(capture, connection) not in (Installation.CURRENT, Installation.NO_TABLE)


def _forget_flushed(using: str) -> None:
    if not CapturedWrite.objects.using(using).exists():
        return
    tables: list[captures.Model] = [*captures.captured_tables(), Event]
    if not any(model._base_manager.using(using).exists() for model in tables):
        CapturedWrite.objects.using(using).all().delete()
