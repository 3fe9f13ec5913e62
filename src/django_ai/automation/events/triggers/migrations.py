"""Which tables the migrations of the project capture: their operations are read in order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import DeleteModel, RenameModel


def captured_by(loader: MigrationLoader, *, applied_only: bool = False) -> set[str]:
    """Return the labels of the models whose tables the migrations capture, in lower case.

    ``applied_only``: leave out migrations that the database has not had yet.
    """
    captured: set[str] = set()
    seen: set[tuple[str, str]] = set()
    for leaf in loader.graph.leaf_nodes():
        for node in loader.graph.forwards_plan(leaf):
            if node in seen or (applied_only and node not in loader.applied_migrations):
                continue
            seen.add(node)
            for operation in _operations(loader.get_migration(*node).operations):
                _apply(operation, node[0], captured)
    return captured


def _operations(operations: Iterable[Any]) -> Iterable[Any]:
    for operation in operations:
        yield operation
        yield from _operations(getattr(operation, "database_operations", ()))


def _apply(operation: Any, app_label: str, captured: set[str]) -> None:
    captures = getattr(operation, "captures", None)
    if captures is not None:  # CaptureWrites, StopCapturingWrites
        (captured.add if captures else captured.discard)(operation.label)
    elif isinstance(operation, RenameModel) and f"{app_label}.{operation.old_name_lower}" in captured:
        captured.discard(f"{app_label}.{operation.old_name_lower}")
        captured.add(f"{app_label}.{operation.new_name_lower}")
    elif isinstance(operation, DeleteModel):
        captured.discard(f"{app_label}.{operation.name_lower}")
