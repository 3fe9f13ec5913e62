"""Pruning: old rows are deleted in short transactions, in the order of their keys, in time slices.

A scan reads a table once, one window of keys at a time, so millions of rows that must stay are not read again for each
batch. It starts at a random key and wraps around: if a scan ends early, or by an error, later ones still reach the
other rows. The rows of a batch are locked and checked again before they are deleted, so no row is deleted that an
operator resumes at that moment; rows that are locked by others stay until the next scan. After a scan that found little
to delete, the task pauses, so that rows that stay cost little however many there are.

The only index needed is the primary key: keys rise with time, so after a window without rows that are old enough, the
rest of the table is younger still. So no index for pruning slows down the work.
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

from .periodic_tasks import SliceResult, TimeSlice

WINDOW_KEYS = 2000
"""How many keys one query reads."""
BATCH_ROWS = 500
"""How many rows one transaction deletes, not counting the rows that depend on them."""
PAUSE_PER_IDLE_SECOND = 10
"""After a scan the task pauses for this many times the seconds spent on windows without a row to delete ..."""
MAX_PAUSE = timedelta(hours=1)
"""... but never for longer than this."""

OURS = __name__.rpartition(".queues.")[0] + "."


@dataclass(slots=True)
class TableScan:
    """How far a scan has come. It continues ``after`` this key, up to ``last``, and ``then`` over one more range of
    keys. ``idle``: the seconds that it spent on windows without a row to delete."""

    after: int
    last: int
    then: tuple[int, int] | None
    idle: float = 0.0


def prune_in_batches(rows: models.QuerySet[Any], created: str, before: datetime, time_slice: TimeSlice) -> SliceResult:
    """Delete ``rows`` and the rows that depend on them, until the time slice is over. ``done`` does not count the
    dependent rows.

    ``created``: the column with the time at which a row was created. ``before``: ``rows`` has none that was created
    later. At least one window is scanned.
    """
    table = rows.model._base_manager.using(rows.db)
    scan = TableScan(**time_slice.position) if time_slice.position else _start_scan(table)
    removed = 0
    while scan is not None:
        started = time.monotonic()
        keys = table.filter(pk__gt=scan.after, pk__lte=scan.last).order_by("pk")
        window = keys.values("pk", created)[:WINDOW_KEYS].aggregate(last=Max("pk"), oldest=Min(created))
        if window["oldest"] is None or window["oldest"] >= before:
            if scan.then is None:
                return SliceResult(removed, pause=min(PAUSE_PER_IDLE_SECOND * timedelta(seconds=scan.idle), MAX_PAUSE))
            (scan.after, scan.last), scan.then = scan.then, None
            continue
        found, batch = 0, BATCH_ROWS
        while batch == BATCH_ROWS:
            batch = _remove_batch(rows.filter(pk__gt=scan.after, pk__lte=window["last"]))
            found += batch
            if time_slice.is_over:
                break
        if batch < BATCH_ROWS:
            scan.after = window["last"]
        if not found:
            scan.idle += time.monotonic() - started
        removed += found
        if time_slice.is_over:
            return SliceResult(removed, asdict(scan))
    return SliceResult(removed)


def _start_scan(table: models.QuerySet[Any]) -> TableScan | None:
    found = table.aggregate(first=Min("pk"), last=Max("pk"))
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
        pks = [row.pk for row in taken.only("pk")[:BATCH_ROWS]]
        if pks:
            remove(rows.model, pks, rows.db)
    return len(pks)


def remove(model: type[models.Model], pks: Sequence[int], alias: str) -> None:
    """Delete rows by key and, before them, the rows that depend on them, in statements of bounded size.

    Django's own ``delete()`` would first load all dependent rows, however many. It is used only where the project
    listens to the deletion, or where one of its models refers to the rows. The SQL is written by hand, because Django
    takes longer to compose a list of 500 keys than the database takes to delete them.
    """
    needs_django = pre_delete.has_listeners(model) or post_delete.has_listeners(model)
    for relation in model._meta.get_fields(include_hidden=True):
        if not (relation.auto_created and (relation.one_to_many or relation.one_to_one)):
            continue
        reverse: Any = relation
        theirs, column = reverse.related_model, reverse.field.column
        if not theirs.__module__.startswith(OURS):
            needs_django = True
        elif reverse.on_delete is models.SET_NULL:
            _execute("UPDATE {table} SET {column} = NULL WHERE {among}", theirs, column, pks, alias)
        else:
            found: Sequence[int] = range(WINDOW_KEYS)
            while len(found) == WINDOW_KEYS:
                select = f"SELECT {{pk}} FROM {{table}} WHERE {{among}} LIMIT {WINDOW_KEYS}"
                found = _execute(select, theirs, column, pks, alias)
                if found:
                    remove(theirs, found, alias)
    if needs_django:
        # Only the key: there is no need to load, or decrypt, the other columns.
        model._base_manager.using(alias).filter(pk__in=pks).only("pk").delete()
    else:
        _execute("DELETE FROM {table} WHERE {among}", model, str(model._meta.pk.column), pks, alias)


def _execute(sql: str, model: type[models.Model], column: str, keys: Sequence[int], alias: str) -> list[int]:
    """Execute ``sql`` with ``among``: the ``column`` is one of ``keys``. Return the keys that a SELECT finds."""
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
