"""What ``cleanup_old`` may remove on this floor: finished executions, and events of entities that are gone.

The latest row of a living entity stays, however old: it is what keeps the event from occurring twice. So does what a
floor above still needs.
"""

from __future__ import annotations

from datetime import datetime

from django.db.models import Exists, OuterRef

from ..conf import conf
from ..queues.cleaning import sweep
from .listeners import listeners
from .models import CallbackExecution, Event, ExecutionStatus


def remove_executions(now: datetime, until: float) -> int:
    """Remove what ended longer ago than ``RETENTION_EXECUTIONS``."""
    before = now - conf().kept("EXECUTIONS")
    finished = [ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED]
    # A finished execution of a living event stays with it: its unique key is what says "done".
    rows = CallbackExecution.objects.filter(status__in=finished, finished_at__lt=before, event__active_key=None)
    return sweep(rows, "created_at", before, until)


def remove_events(now: datetime, until: float) -> int:
    """Remove events that are over since longer than ``RETENTION_EVENTS``, and what they called."""
    before = now - conf().kept("EVENTS")
    executed = min(before, now - conf().kept("EXECUTIONS"))
    dead = (
        Event.objects.filter(active_key=None, wake_at=None, event_created_at__lt=before)
        .exclude(occurred_at__gte=before)
        .exclude(executions__status__in=[ExecutionStatus.PENDING, ExecutionStatus.PARKED])
        .exclude(executions__finished_at__gte=executed)
    )
    # A deletion writes its snapshot to the latest row only, and those before it read it there.
    history = Event.objects.filter(
        entity_type=OuterRef("entity_type"),
        entity_id=OuterRef("entity_id"),
        declared_as=OuterRef("declared_as"),
        pk__lt=OuterRef("pk"),
        snapshot__isnull=True,
    )
    dead = dead.exclude(Exists(history), snapshot__isnull=False)
    for listener in listeners():
        for needed in listener.still_needs():
            dead = dead.exclude(needed)
    return sweep(dead, "event_created_at", before, until)
