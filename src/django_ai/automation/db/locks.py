"""Row locks, as far as each database has them."""

from __future__ import annotations

from typing import TypeVar

from django.db import connections, models
from django.db.models import QuerySet

M = TypeVar("M", bound=models.Model)


def locked(rows: QuerySet[M]) -> QuerySet[M]:
    """Return ``rows`` so that reading them locks them, without blocking inserts of rows that refer to them."""
    no_key = connections[rows.db].features.has_select_for_no_key_update
    return rows.select_for_update(no_key=no_key)


def skipping_locked(rows: QuerySet[M]) -> QuerySet[M]:
    """Return ``rows`` so that reading them locks them, and skips rows that are locked already. On a database without
    row locks there is no concurrent writer."""
    return rows.select_for_update(skip_locked=connections[rows.db].features.has_select_for_update_skip_locked)
