"""Indexes and constraints that work on every database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class PartialIndex(models.Index):
    """An index on the rows that match a condition; on all rows where the database has no partial indexes.

    MariaDB has none, and Django would then omit the index. ``elsewhere``: its columns there, if they are others.
    """

    def __init__(self, *args: Any, elsewhere: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.elsewhere = list(elsewhere)

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        return path, args, {**kwargs, "elsewhere": self.elsewhere} if self.elsewhere else kwargs

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Any:
        if self.condition is not None and not schema_editor.connection.features.supports_partial_indexes:
            index = models.Index(fields=self.elsewhere or self.fields, name=self.name)
            return index.create_sql(model, schema_editor, using, **kwargs)
        return super().create_sql(model, schema_editor, using, **kwargs)

    def check(self, model: type[models.Model], connection: Any) -> list[Any]:
        """Skip Django's warning that the condition is ignored, which is intended (called by Django >= 6.0)."""
        return []


class PartialOnlyIndex(PartialIndex):
    """A partial index that does not exist where the database has no partial indexes, because another one serves its
    queries there."""

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Any:
        if not schema_editor.connection.features.supports_partial_indexes:
            return NO_STATEMENT
        return super().create_sql(model, schema_editor, using, **kwargs)

    def remove_sql(self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, **kwargs: Any) -> Any:
        if not schema_editor.connection.features.supports_partial_indexes:
            return NO_STATEMENT
        return super().remove_sql(model, schema_editor, **kwargs)


NO_STATEMENT = "DO 0"
"""A statement of MariaDB that does nothing: Django's schema editor executes what an index returns."""


def unique(name: str, field: str) -> models.UniqueConstraint:
    """Return a unique constraint on the string column ``field``.

    Not ``unique=True``: on PostgreSQL Django would add a second index for LIKE to such a field. No query uses it, and
    it slows down every insert.
    """
    return models.UniqueConstraint(fields=[field], name=name)
