"""Write the migration that installs the triggers of captured tables, and removes those that are no longer needed."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from django.db.migrations import Migration
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.writer import MigrationWriter

from .capture import captured_tables
from .models import CapturedWrite
from .operations import CaptureWrites, StopCapturingWrites
from .triggers.migrations import captured_by


@dataclass(frozen=True, slots=True)
class Changes:
    """What the migrations of the project lack. ``capture``: labels of models whose tables must get triggers.
    ``stop``: labels of those that lose them."""

    capture: list[str]
    stop: list[str]

    def __bool__(self) -> bool:
        return bool(self.capture or self.stop)


def missing_changes(loader: MigrationLoader) -> Changes:
    """Return what the migrations of the project lack. Tables of apps without migrations need none."""
    captured = captured_by(loader)
    needed = {
        model._meta.label_lower: model._meta.label
        for model in captured_tables()
        if model._meta.app_label not in loader.unmigrated_apps
    }
    known = loader.project_state().models
    return Changes(
        [label for key, label in needed.items() if key not in captured],
        sorted(key for key in captured if key not in needed and tuple(key.split(".")) in known),
    )


def new_migration(loader: MigrationLoader, app_label: str, changes: Changes) -> MigrationWriter:
    """Return the writer of a migration of ``app_label`` with ``changes``. Raises ``ValueError`` if it cannot be
    written."""
    if app_label not in loader.migrated_apps:
        near = get_close_matches(app_label, loader.migrated_apps, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Name one of: {', '.join(sorted(loader.migrated_apps))}."
        raise ValueError(f"The app {app_label!r} has no migrations. {hint}")
    dependencies = [_leaf(loader, app_label)]
    labels = [*changes.capture, *changes.stop]
    for other in dict.fromkeys([*(label.partition(".")[0] for label in labels), CapturedWrite._meta.app_label]):
        if other != app_label:
            dependencies.append(_leaf(loader, other))
    number = MigrationAutodetector.parse_number(dependencies[0][1]) or 0
    migration: Any = type(
        "Migration",
        (Migration,),
        {
            "dependencies": dependencies,
            "operations": [
                *(CaptureWrites(label) for label in changes.capture),
                *(StopCapturingWrites(label) for label in changes.stop),
            ],
        },
    )(f"{number + 1:04}_capture_writes", app_label)
    return MigrationWriter(migration)


def _leaf(loader: MigrationLoader, app_label: str) -> tuple[str, str]:
    leaves = loader.graph.leaf_nodes(app_label)
    if len(leaves) != 1:
        raise ValueError(
            f"The app {app_label!r} has {len(leaves)} latest migrations. Run manage.py makemigrations --merge first."
        )
    found: tuple[str, str] = leaves[0]
    return found
