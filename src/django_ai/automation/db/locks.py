"""Row locks that the databases can and cannot take."""

from __future__ import annotations

from typing import TypeVar

from django.db import connections, models
from django.db.models import QuerySet

M = TypeVar("M", bound=models.Model)


def locked(rows: QuerySet[M]) -> QuerySet[M]:
    """Return ``rows`` so that reading them locks them, but nobody who only refers to them."""
    no_key = connections[rows.db].features.has_select_for_no_key_update
    return rows.select_for_update(no_key=no_key)


def unlocked(rows: QuerySet[M]) -> QuerySet[M]:
    """Return ``rows`` so that reading them locks them, and passes by what somebody else has locked. Where the database
    has no locks of rows, nobody else writes meanwhile."""
    return rows.select_for_update(skip_locked=connections[rows.db].features.has_select_for_update_skip_locked)
