"""What ``cleanup_old`` may remove on this floor: finished executions, and events of entities that are gone.

The latest row of a living entity stays, however old: it is what keeps the event from occurring twice. So does what a
floor above still needs.
"""

from __future__ import annotations

from datetime import datetime

from django.db import models

from .listeners import listeners
from .models import CallbackExecution, Event, ExecutionStatus

CHUNK = 1000


def remove_in_chunks(rows: models.QuerySet[models.Model]) -> int:
    """Delete ``rows`` in short transactions, so that nobody waits; return how many rows of this model went."""
    removed = 0
    while pks := list(rows.order_by("pk").values_list("pk", flat=True)[:CHUNK]):
        rows.model._base_manager.using(rows.db).filter(pk__in=pks).delete()
        removed += len(pks)
    return removed


def remove_old(before: datetime) -> int:
    """Remove what ended before ``before``."""
    finished = [ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED]
    # A finished execution of a living event stays with it: its unique key is what says "done".
    executions = CallbackExecution.objects.filter(status__in=finished, finished_at__lt=before, event__active_key=None)
    dead = (
        Event.objects.filter(active_key=None, wake_at=None, event_created_at__lt=before)
        .exclude(occurred_at__gte=before)
        .exclude(executions__status__in=[ExecutionStatus.PENDING, ExecutionStatus.PARKED])
        .exclude(executions__finished_at__gte=before)
    )
    for listener in listeners():
        for needed in listener.still_needs():
            dead = dead.exclude(needed)
    return remove_in_chunks(executions) + remove_in_chunks(dead)
