"""A replica that never catches up, and Django's PrimaryReplica router, which sends reads to it.

With ``TEST_REPLICA=1``, each read of the package that names no database goes to the replica. The tests' own reads go to
the primary, because they check what was written.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

REPLICA = "replica"
TESTS = str(Path(__file__).parents[1])
PACKAGE = str(Path(__file__).parents[2] / "src" / "django_ai")
WRAPPER = str(Path(PACKAGE) / "automation" / "events" / "recording" / "entity_state.py")


class PrimaryReplicaRouter:
    """The router from Django's documentation."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return REPLICA

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return True

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return True


class PackageReadsReplica(PrimaryReplicaRouter):
    def db_for_read(self, model: Any, **hints: Any) -> str:
        if model.__module__.startswith("django.contrib."):
            return "default"  # users and content types of the admin
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename == WRAPPER:
                pass  # refresh_from_db of a model with events: its caller decides
            elif frame.f_code.co_filename.startswith(PACKAGE):
                return REPLICA
            elif frame.f_code.co_filename.startswith(TESTS):
                return "default"
            frame = frame.f_back  # type: ignore[assignment]
        return "default"
