"""How old rows go: in short transactions, in the order of their keys, bite by bite.

A sweep walks over a table once, a window of keys at a time, so that millions of rows that must stay are passed by and
not looked at again for each batch. It begins at a random place and goes round: one that is ended early, or by an error,
does not keep what lies behind from its turn. The rows of a batch are locked and asked once more before they go, so
nothing is removed that a person resumes at that moment; what somebody else has locked stays for the next time. After a
sweep that has passed by much for nothing there is a rest, so that rows that stay cost little however many there are.

Needs no index but the primary key: keys rise with time, and where a window holds nothing that was made long enough ago,
the rest of the table is younger still. So finishing a row costs nothing for the sake of its removal.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connections, models, transaction
from django.db.models import Max, Min
from django.db.models.signals import post_delete, pre_delete

from .maintenance import SliceResult, TimeSlice

WINDOW = 2000
"""Keys that are looked at in one query."""
BATCH = 500
"""Rows that go in one transaction, with what hangs on them."""
IDLE_REST = 10
"""After a sweep there is a rest of so many times what it spent on windows in which nothing could go ..."""
LONGEST_REST = timedelta(hours=1)
"""... but never a longer one."""

OURS = __name__.rpartition(".queues.")[0] + "."


@dataclass(slots=True)
class TableScan:
    """How far a sweep has come: ``after`` this key, to ``last``, and ``then`` from one key to another. ``idle``: the
    seconds that it spent on windows in which nothing could go."""

    after: int
    last: int
    then: tuple[int, int] | None
    idle: float = 0.0


def prune_in_batches(rows: models.QuerySet[Any], born: str, before: datetime, turn: TimeSlice) -> SliceResult:
    """Remove ``rows`` and what hangs on them, as long as the turn lasts; ``done`` does not count those that hung on
    them.

    ``born``: the column that says when a row was made. ``before``: none that was made later is among ``rows``. At least
    one window is swept.
    """
    everything = rows.model._base_manager.using(rows.db)
    walk = TableScan(**turn.position) if turn.position else _begin(everything)
    removed = 0
    while walk is not None:
        started = time.monotonic()
        keys = everything.filter(pk__gt=walk.after, pk__lte=walk.last).order_by("pk")
        window = keys.values("pk", born)[:WINDOW].aggregate(last=Max("pk"), eldest=Min(born))
        if window["eldest"] is None or window["eldest"] >= before:
            if walk.then is None:
                return SliceResult(removed, rest=min(IDLE_REST * timedelta(seconds=walk.idle), LONGEST_REST))
            (walk.after, walk.last), walk.then = walk.then, None
            continue
        found, batch = 0, BATCH
        while batch == BATCH:
            batch = _remove_batch(rows.filter(pk__gt=walk.after, pk__lte=window["last"]))
            found += batch
            if turn.is_over:
                break
        if batch < BATCH:
            walk.after = window["last"]
        if not found:
            walk.idle += time.monotonic() - started
        removed += found
        if turn.is_over:
            return SliceResult(removed, asdict(walk))
    return SliceResult(removed)


def _begin(everything: models.QuerySet[Any]) -> TableScan | None:
    found = everything.aggregate(first=Min("pk"), last=Max("pk"))
    if found["first"] is None:
        return None
    start = random.randint(found["first"], found["last"])
    return TableScan(start - 1, found["last"], (found["first"] - 1, start - 1))


def _remove_batch(rows: models.QuerySet[Any]) -> int:
    features = connections[rows.db].features
    with transaction.atomic(using=rows.db):
        taken = rows.order_by("pk").select_for_update(
            skip_locked=features.has_select_for_update_skip_locked,
            of=("self",) if features.has_select_for_update_of else (),
        )
        pks = [row.pk for row in taken.only("pk")[:BATCH]]
        if pks:
            remove(rows.model, pks, rows.db)
    return len(pks)


def remove(model: type[models.Model], pks: Sequence[int], alias: str) -> None:
    """Delete rows by key and, before them, what hangs on them, in statements of bounded size.

    Django's own ``delete()`` would load all that hangs on them first, however much that is. It is left to it where the
    project listens to the deletion, or a model of its own refers to one of ours. The other statements are written by
    hand: to compose and fill in a list of 500 keys takes Django longer than the database needs for them.
    """
    is_watched = pre_delete.has_listeners(model) or post_delete.has_listeners(model)
    for relation in model._meta.get_fields(include_hidden=True):
        if not (relation.auto_created and (relation.one_to_many or relation.one_to_one)):
            continue
        reverse: Any = relation
        theirs, column = reverse.related_model, reverse.field.column
        if not theirs.__module__.startswith(OURS):
            is_watched = True
        elif reverse.on_delete is models.SET_NULL:
            _execute("UPDATE {table} SET {column} = NULL WHERE {among}", theirs, column, pks, alias)
        else:
            found: Sequence[int] = range(WINDOW)
            while len(found) == WINDOW:
                select = f"SELECT {{pk}} FROM {{table}} WHERE {{among}} LIMIT {WINDOW}"
                found = _execute(select, theirs, column, pks, alias)
                if found:
                    remove(theirs, found, alias)
    if is_watched:
        # Nobody needs to read, or decrypt, what goes.
        model._base_manager.using(alias).filter(pk__in=pks).only("pk").delete()
    else:
        _execute("DELETE FROM {table} WHERE {among}", model, str(model._meta.pk.column), pks, alias)


def _execute(sql: str, model: type[models.Model], column: str, keys: Sequence[int], alias: str) -> list[int]:
    """Execute ``sql`` with ``among``: the ``column`` is one of ``keys``. Return the keys that a SELECT has found."""
    connection = connections[alias]
    quote = connection.ops.quote_name
    has_arrays = connection.vendor == "postgresql"
    statement = sql.format(
        table=quote(model._meta.db_table),
        pk=quote(str(model._meta.pk.column)),
        column=quote(column),
        among=f"{quote(column)} {'= ANY(%s)' if has_arrays else 'IN (' + ', '.join(['%s'] * len(keys)) + ')'}",
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [list(keys)] if has_arrays else list(keys))
        return [pk for (pk,) in cursor.fetchall()] if sql.startswith("SELECT") else []
