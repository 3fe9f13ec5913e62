"""The priority of a row that an event starts, where the project gives a function for it.

The function is called once for each event, before the transaction in which the event occurs is open (``prepare`` of the
subscribers), or in the save that plans a run. It decides an order and nothing else, so an error in it loses nothing:
it is reported like that of a condition, and the priority is 0.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

from django.db import connections

from ..db.errors import own_failures
from ..db.savepoints import savepoint_on_query
from ..db.writer import alias_of, from_writer
from ..queues.lanes import Priority, priority_for
from .failed_evaluation import FailedEvaluation
from .models import Event


def priority_of(event: Event, row: str, priority: Priority) -> int:
    """Return the priority of ``row``, a name for what ``event`` starts. A function is called with the event."""
    if not callable(priority):
        return priority
    known: dict[str, int] = event.__dict__.setdefault("_priorities", {})
    if row not in known:
        known[row] = _computed(event, row, priority)
    return known[row]


@from_writer()
def _computed(event: Event, row: str, priority: Priority) -> int:
    started, connection = time.monotonic(), connections[alias_of(Event)]
    with own_failures(connection) as is_ours:
        try:
            with savepoint_on_query(connection.alias) if connection.in_atomic_block else nullcontext():
                return priority_for(priority, event, row)
        except Exception as error:
            if is_ours(error):
                raise
            FailedEvaluation(error, time.monotonic() - started).report(event)
            return 0
