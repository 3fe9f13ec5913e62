"""What ``cleanup_old`` may remove on this floor."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Exists, OuterRef, Q

from ..events.retention import remove_in_chunks
from .models import FINISHED, Signal, WorkflowRun


def remove_old(before: datetime) -> int:
    """Remove finished runs with their history, and signals that nobody can consume any more.

    A run of an event that can still be told stays: its ``origin_key`` keeps it from being started twice.
    """
    runs = WorkflowRun.objects.filter(status__in=FINISHED, finished_at__lt=before).filter(
        Q(event=None) | Q(event__active_key=None)
    )
    waiting_for = WorkflowRun.objects.unfinished().filter(wake_reason="signal", wake_ref=OuterRef("pk"))
    delivered = Signal.objects.filter(delivered_at__lt=before).filter(~Exists(waiting_for))
    done = delivered.filter(Q(run=None) | Q(consumed_at__isnull=False) | Q(run__status__in=FINISHED))
    return remove_in_chunks(done) + remove_in_chunks(runs)
