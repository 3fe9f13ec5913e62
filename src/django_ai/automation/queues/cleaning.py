"""How old rows go: in short transactions, in the order of their keys, as long as the time lasts.

A sweep walks over a table once, a window of keys at a time, so that millions of rows that must stay are passed by and
not looked at again for each batch. It begins at a random place and goes round: where one share of time is not enough
for the whole table, the next ones get everywhere. The rows of a batch are locked and asked once more before they go, so
nothing is removed that a person resumes at that moment; what somebody else has locked stays for the next time.

Needs no index but the primary key: keys rise with time, and where a window holds nothing that was made long enough ago,
the rest of the table is younger still. So finishing a row costs nothing for the sake of its removal.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import connections, models, transaction
from django.db.models import Max, Min
from django.db.models.signals import post_delete, pre_delete

WINDOW = 2000
"""Keys that are looked at in one query."""
BATCH = 500
"""Rows that go in one transaction, with what hangs on them."""

OURS = __name__.rpartition(".queues.")[0] + "."


def sweep(rows: models.QuerySet[Any], born: str, before: datetime, until: float = float("inf")) -> int:
    """Remove ``rows`` and what hangs on them; return how many rows went, those that hung on them not counted.

    ``born``: the column that says when a row was made. ``before``: none that was made later is among ``rows``.
    ``until``: stop at this moment (of ``time.monotonic``); at least one window is swept.
    """
    found = rows.model._base_manager.using(rows.db).aggregate(first=Min("pk"), last=Max("pk"))
    if found["first"] is None:
        return 0
    start = random.randint(found["first"], found["last"])
    removed, after = _walk(rows, start - 1, found["last"], born, before, until)
    if after is not None:
        removed += _walk(rows, found["first"] - 1, start - 1, born, before, until)[0]
    return removed


def _walk(
    rows: models.QuerySet[Any], after: int, last: int, born: str, before: datetime, until: float
) -> tuple[int, int | None]:
    """Sweep the keys above ``after``, to ``last``; return how many rows went, and None if the time was used up."""
    everything = rows.model._base_manager.using(rows.db)
    removed = 0
    while after < last:
        window = list(everything.filter(pk__gt=after, pk__lte=last).order_by("pk").values_list("pk", born)[:WINDOW])
        if not any(moment < before for _, moment in window):
            break
        low, after = after, window[-1][0]
        batch = BATCH
        while batch == BATCH:
            batch = _remove_batch(rows.filter(pk__gt=low, pk__lte=after))
            removed += batch
            if time.monotonic() >= until:
                return removed, None
    return removed, after


def _remove_batch(rows: models.QuerySet[Any]) -> int:
    features = connections[rows.db].features
    with transaction.atomic(using=rows.db):
        taken = rows.order_by("pk").select_for_update(
            skip_locked=features.has_select_for_update_skip_locked,
            of=("self",) if features.has_select_for_update_of else (),
        )
        pks = [row.pk for row in taken.only("pk")[:BATCH]]
        if pks:
            _remove(rows.model, pks, rows.db)
    return len(pks)


def _remove(model: type[models.Model], pks: Sequence[Any], alias: str) -> None:
    """Delete rows by key and, before them, what hangs on them, in statements of bounded size.

    Django's own ``delete()`` would load all that hangs on them first, however much that is. It is left to it where the
    project listens to the deletion, or a model of its own refers to one of ours.
    """
    is_watched = pre_delete.has_listeners(model) or post_delete.has_listeners(model)
    for relation in model._meta.get_fields(include_hidden=True):
        if not (relation.auto_created and (relation.one_to_many or relation.one_to_one)):
            continue
        reverse: Any = relation
        if not reverse.related_model.__module__.startswith(OURS):
            is_watched = True
            continue
        theirs = reverse.related_model._base_manager.using(alias).filter(**{f"{reverse.field.name}__in": pks})
        if reverse.on_delete is models.SET_NULL:
            theirs.update(**{reverse.field.name: None})
        else:
            while found := list(theirs.values_list("pk", flat=True)[:WINDOW]):
                _remove(reverse.related_model, found, alias)
    rows: Any = model._base_manager.using(alias).filter(pk__in=pks)
    if is_watched:
        rows.only("pk").delete()  # nobody needs to read, or decrypt, what goes
    else:
        rows._raw_delete(alias)
