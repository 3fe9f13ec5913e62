"""Indexes and constraints that work on every database."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class PartialIndex(models.Index):
    """An index on the rows that match a condition; on all rows where the database has no partial indexes.

    MariaDB has none, and Django would then omit the index.
    """

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Any:
        if self.condition is not None and not schema_editor.connection.features.supports_partial_indexes:
            return models.Index(fields=self.fields, name=self.name).create_sql(model, schema_editor, using, **kwargs)
        return super().create_sql(model, schema_editor, using, **kwargs)

    def check(self, model: type[models.Model], connection: Any) -> list[Any]:
        """Skip Django's warning that the condition is ignored, which is intended (called by Django >= 6.0)."""
        return []


def unique(name: str, field: str) -> models.UniqueConstraint:
    """Return a unique constraint on the string column ``field``.

    Not ``unique=True``: on PostgreSQL Django would add a second index for LIKE to such a field. No query uses it, and
    it slows down every insert.
    """
    return models.UniqueConstraint(fields=[field], name=name)
