"""Indexes and constraints that mean the same on every database."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class PartialIndex(models.Index):
    """An index on the rows that a condition picks, where the database has such indexes; on all rows elsewhere.

    MariaDB has none, and Django would then leave the index out altogether.
    """

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Any:
        if self.condition is not None and not schema_editor.connection.features.supports_partial_indexes:
            return models.Index(fields=self.fields, name=self.name).create_sql(model, schema_editor, using, **kwargs)
        return super().create_sql(model, schema_editor, using, **kwargs)

    def check(self, model: type[models.Model], connection: Any) -> list[Any]:
        """Skip Django's warning that the condition is ignored: here that is the plan (Django >= 6.0 asks here)."""
        return []


def unique(name: str, field: str) -> models.UniqueConstraint:
    """Return the constraint that keeps the texts of ``field`` unique.

    Not ``unique=True``: on PostgreSQL Django would add a second index to such a field, for LIKE, which no query of ours
    uses and which every insert pays for.
    """
    return models.UniqueConstraint(fields=[field], name=name)
