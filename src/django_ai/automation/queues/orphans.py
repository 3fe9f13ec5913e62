"""Orphans: automation rows whose parent was deleted by raw SQL, bypassing the constraints.

This happens in a session without foreign-key checks, after a restore of some of the tables, or when a partition is
dropped. The remaining rows refer to nothing, and every query that joins them with their parent misses them, including
those of the retention. So this task searches for them, table by table, and deletes them as their parent's deletion
would have. (An event whose *entity* is gone is no orphan: ``events.retention`` releases it.)
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import models, transaction
from django.db.models import Exists, OuterRef

from ..db.writer import alias_of
from .periodic_tasks import SliceResult, TimeSlice
from .pruning import OURS, WINDOW_KEYS, remove


def prune_orphans(time_slice: TimeSlice) -> SliceResult:
    """Delete rows that belonged to a deleted one, and set references to deleted rows to null where that is allowed."""
    references = _references()
    position = time_slice.position or {}
    number, after = position.get("reference", 0), position.get("after", 0)
    done = 0
    while number < len(references):
        field = references[number]
        rows = field.model._base_manager.using(alias_of(field.model)).order_by("pk")
        window = list(rows.filter(pk__gt=after).values_list("pk", flat=True)[:WINDOW_KEYS])
        if window:
            done += _remove(field, rows.filter(pk__gt=after, pk__lte=window[-1]))
            after = window[-1]
        if len(window) < WINDOW_KEYS:
            number, after = number + 1, 0
        if time_slice.is_over and number < len(references):
            return SliceResult(done, {"reference": number, "after": after})
    return SliceResult(done)


def _references() -> list[Any]:
    """Return the foreign keys between automation models. References of a table to itself come first: SQLite checks
    them again at each update of their row."""
    found = [
        field
        for model in apps.get_models()
        if model.__module__.startswith(OURS)
        for field in model._meta.concrete_fields
        if isinstance(field, models.ForeignKey) and field.related_model.__module__.startswith(OURS)
    ]
    return sorted(found, key=lambda field: field.related_model is not field.model)


def _remove(field: Any, rows: models.QuerySet[Any]) -> int:
    parents = field.related_model._base_manager.using(rows.db).filter(pk=OuterRef(field.attname))
    orphans = rows.filter(**{f"{field.attname}__isnull": False}).filter(~Exists(parents))
    pks = list(orphans.values_list("pk", flat=True))
    if not pks:
        return 0
    with transaction.atomic(using=rows.db):
        if field.remote_field.on_delete is models.SET_NULL:
            return int(rows.filter(pk__in=pks).update(**{field.attname: None}))
        remove(field.model, pks, rows.db)
    return len(pks)
