"""What maintenance may remove on this floor."""

from __future__ import annotations

from django.db.models import Exists, OuterRef, Q

from ..conf import conf
from ..queues.cleaning import sweep
from ..queues.maintenance import Bite, Turn
from .models import FINISHED, Signal, StepExecution, WorkflowRun, WorkflowStatus


def prune_runs(turn: Turn) -> Bite:
    """Remove runs that ended longer ago than ``RETENTION_RUNS``, with their history.

    A run of an event that can still be told stays: its ``origin_key`` keeps it from being started twice. One that was
    withdrawn has not begun.
    """
    before = turn.now - conf().kept("RUNS")
    ended = WorkflowRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    withdrawn = Q(status=WorkflowStatus.WITHDRAWN)
    return sweep(ended.filter(Q(event=None) | Q(event__active_key=None) | withdrawn), "created_at", before, turn)


def prune_history(turn: Turn) -> Bite:
    """Remove the history of runs that ended as long ago and stay, unless somebody may resume them: then it says what
    they have consumed."""
    before = turn.now - conf().kept("RUNS")
    over = [WorkflowStatus.COMPLETED, WorkflowStatus.CANCELLED]
    history = StepExecution.objects.filter(run__status__in=over, run__finished_at__lt=before)
    return sweep(history, "finished", before, turn)


def prune_signals(turn: Turn) -> Bite:
    """Remove signals that nobody can consume any more, delivered longer ago than ``RETENTION_SIGNALS``."""
    before = turn.now - conf().kept("SIGNALS")
    waiting_for = WorkflowRun.objects.unfinished().filter(wake_reason="signal", wake_ref=OuterRef("pk"))
    delivered = Signal.objects.filter(delivered_at__lt=before).filter(~Exists(waiting_for))
    done = delivered.filter(Q(run=None) | Q(consumed_at__isnull=False) | Q(run__status__in=FINISHED))
    return sweep(done, "sent_at", before, turn)
