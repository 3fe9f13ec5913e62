"""Rows in bulk, inserted by a SELECT. A column that is not given gets the default of its field, as in a new row."""

from __future__ import annotations

from typing import Any

from django.db import connection, models


def insert_from(model: type[models.Model], source: str, *params: Any, **columns: str) -> None:
    """Insert a row of ``model`` for each row of ``source``, which is what follows FROM in the SELECT.

    ``columns``: an SQL expression for each column that is given. ``params``: those of ``source``.
    """
    quote = connection.ops.quote_name
    names, selected, defaults = list(columns), list(columns.values()), []
    for field in model._meta.concrete_fields:
        if field.column in columns or field.null or isinstance(field, models.AutoField):
            continue
        names.append(field.column)
        selected.append(f"%s::{field.db_type(connection)}")
        defaults.append(field.get_db_prep_save(field.get_default(), connection))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(model._meta.db_table)} ({', '.join(map(quote, names))}) "
            f"SELECT {', '.join(selected)} FROM {source}",
            [*defaults, *params],
        )
