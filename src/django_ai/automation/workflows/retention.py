"""What maintenance may remove on this floor."""

from __future__ import annotations

from django.db.models import Exists, OuterRef, Q

from ..conf import conf
from ..events.models import Event
from ..queues.periodic_tasks import SliceResult, TimeSlice
from ..queues.pruning import prune_in_batches
from .models import FINISHED, Signal, StepExecution, WorkflowRun, WorkflowStatus


def prune_runs(turn: TimeSlice) -> SliceResult:
    """Remove runs that ended longer ago than ``RETENTION_RUNS``, with their history.

    A run of an event that can still be told stays: its ``origin_key`` keeps it from being started twice. One that was
    withdrawn has not begun.
    """
    before = turn.now - conf().retention("RUNS")
    ended = WorkflowRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    withdrawn = Q(status=WorkflowStatus.WITHDRAWN)
    return prune_in_batches(
        ended.filter(Q(event=None) | Q(event__active_key=None) | withdrawn), "created_at", before, turn
    )


def prune_history(turn: TimeSlice) -> SliceResult:
    """Remove the history of runs that ended as long ago and stay, unless somebody may resume them: then it says what
    they have consumed."""
    before = turn.now - conf().retention("RUNS")
    over = [WorkflowStatus.COMPLETED, WorkflowStatus.CANCELLED]
    history = StepExecution.objects.filter(run__status__in=over, run__finished_at__lt=before)
    return prune_in_batches(history, "finished", before, turn)


def prune_living_history(turn: TimeSlice) -> SliceResult:
    """Remove what runs that live on did longer ago than ``RETENTION_HISTORY``: a run in a circle never ends.

    What such a run still needs stays: its last two visits (attempts, losses, when it last did something); what it has
    consumed, as long as that is there and could be heard once more; and which step has started a child that is there.
    """
    before = turn.now - conf().retention("HISTORY")
    run = WorkflowRun.objects.filter(pk=OuterRef("run")).unfinished()
    children = WorkflowRun.objects.filter(parent=OuterRef("run"), created_at__lt=before)
    signal, event = (Exists(each.objects.filter(pk=OuterRef("wake_ref"))) for each in (Signal, Event))
    consumed = Q(signal, wake_reason="signal") | Q(event, wake_reason="event")
    history = (
        StepExecution.objects.filter(Exists(run.filter(visit__gt=OuterRef("visit") + 1)), finished__lt=before)
        .exclude(consumed)
        .exclude(Q(Exists(children), outcome="subflow"))
    )
    return prune_in_batches(history, "finished", before, turn)


def prune_signals(turn: TimeSlice) -> SliceResult:
    """Remove signals that nobody can consume any more, delivered longer ago than ``RETENTION_SIGNALS``."""
    before = turn.now - conf().retention("SIGNALS")
    waiting_for = WorkflowRun.objects.unfinished().filter(wake_reason="signal", wake_ref=OuterRef("pk"))
    delivered = Signal.objects.filter(delivered_at__lt=before).filter(~Exists(waiting_for))
    done = delivered.filter(Q(run=None) | Q(consumed_at__isnull=False) | Q(run__status__in=FINISHED))
    return prune_in_batches(done, "sent_at", before, turn)
