"""Orphans: rows of ours whose parent was removed by raw SQL, past the constraints that would have refused it.

A session that has switched off the checks of foreign keys, a dump of some of the tables, a partition that was dropped:
what is left refers to nothing, and every query that joins it with its parent passes it by, the retention's, too. So it
is looked for by itself, table by table, and goes as it would have gone with its parent. (An event whose *entity* is
gone is no such row: ``events.retention`` sees to it.)
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import models, transaction
from django.db.models import Exists, OuterRef

from ..db.writer import alias_of
from .maintenance import SliceResult, TimeSlice
from .pruning import OURS, WINDOW, remove


def prune_orphans(turn: TimeSlice) -> SliceResult:
    """Remove rows that hung on one that is gone, and empty references that only mention one."""
    references = _references()
    number, after = (turn.position or {}).get("reference", 0), (turn.position or {}).get("after", 0)
    done = 0
    while number < len(references):
        field = references[number]
        rows = field.model._base_manager.using(alias_of(field.model)).order_by("pk")
        window = list(rows.filter(pk__gt=after).values_list("pk", flat=True)[:WINDOW])
        if window:
            done += _remove(field, rows.filter(pk__gt=after, pk__lte=window[-1]))
            after = window[-1]
        if len(window) < WINDOW:
            number, after = number + 1, 0
        if turn.is_over and number < len(references):
            return SliceResult(done, {"reference": number, "after": after})
    return SliceResult(done)


def _references() -> list[Any]:
    """Return the foreign keys between our own models. Those of a table to itself come first: SQLite asks for them again
    at each update of their row."""
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
    lost = rows.filter(**{f"{field.attname}__isnull": False}).filter(~Exists(parents))
    pks = list(lost.values_list("pk", flat=True))
    if not pks:
        return 0
    with transaction.atomic(using=rows.db):
        if field.remote_field.on_delete is models.SET_NULL:
            return int(rows.filter(pk__in=pks).update(**{field.attname: None}))
        remove(field.model, pks, rows.db)
    return len(pks)
