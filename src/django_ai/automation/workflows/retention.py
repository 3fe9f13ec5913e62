"""What ``cleanup_old`` may remove on this floor."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Exists, OuterRef, Q

from ..conf import conf
from ..queues.cleaning import sweep
from .models import FINISHED, Signal, StepExecution, WorkflowRun, WorkflowStatus


def remove_runs(now: datetime, until: float) -> int:
    """Remove runs that ended longer ago than ``RETENTION_RUNS``, with their history.

    A run of an event that can still be told stays: its ``origin_key`` keeps it from being started twice. Its history
    goes, unless somebody may resume it: then that says what it has consumed. One that was withdrawn has not begun.
    """
    before = now - conf().kept("RUNS")
    ended = WorkflowRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    withdrawn = Q(status=WorkflowStatus.WITHDRAWN)
    removed = sweep(ended.filter(Q(event=None) | Q(event__active_key=None) | withdrawn), "created_at", before, until)
    over = [WorkflowStatus.COMPLETED, WorkflowStatus.CANCELLED]
    history = StepExecution.objects.filter(run__status__in=over, run__finished_at__lt=before)
    return removed + sweep(history, "finished", before, until)


def remove_signals(now: datetime, until: float) -> int:
    """Remove signals that nobody can consume any more, delivered longer ago than ``RETENTION_SIGNALS``."""
    before = now - conf().kept("SIGNALS")
    waiting_for = WorkflowRun.objects.unfinished().filter(wake_reason="signal", wake_ref=OuterRef("pk"))
    delivered = Signal.objects.filter(delivered_at__lt=before).filter(~Exists(waiting_for))
    done = delivered.filter(Q(run=None) | Q(consumed_at__isnull=False) | Q(run__status__in=FINISHED))
    return sweep(done, "sent_at", before, until)
