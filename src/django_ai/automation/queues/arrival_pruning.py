"""Pruning of arrivals, which number the events and signals that arrived."""

from __future__ import annotations

from itertools import takewhile

from django.db import connections

from ..conf import conf
from ..db.writer import alias_of
from .committed_prefix import PAGE, highest_key, older_than_sql
from .models import Arrival
from .periodic_tasks import SliceResult, TimeSlice


def prune_arrivals(time_slice: TimeSlice) -> SliceResult:
    """Remove arrivals that are older than the events that they number, by the database's clock. The newest one stays.

    Starts at the lowest key: the higher the key, the younger the arrival.
    """
    connection = connections[alias_of(Arrival)]
    table = connection.ops.quote_name(Arrival._meta.db_table)
    is_old = older_than_sql(connection, int(conf().retention("EVENTS").total_seconds()))
    newest, removed = highest_key(connection), 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT id, {is_old} FROM {table} WHERE id < %s ORDER BY id LIMIT {PAGE}", [newest])
            rows = cursor.fetchall()
            old = [pk for pk, _ in takewhile(lambda row: row[1], rows)]
            if old:
                cursor.execute(f"DELETE FROM {table} WHERE id <= %s", [old[-1]])
                removed += len(old)
        if len(old) < PAGE:
            return SliceResult(removed)
        if time_slice.is_over:
            return SliceResult(removed, position={"after": old[-1]})
