"""Retention: which runs, history and signals maintenance deletes."""

from __future__ import annotations

from django.db.models import Exists, OuterRef, Q

from ..conf import conf
from ..events.models import Event, has_final_date
from ..queues.periodic_tasks import SliceResult, TimeSlice
from ..queues.pruning import prune_in_batches
from .models import Signal, StepExecution, WorkflowRun
from .statuses import DEFERRED, FINISHED, STARTING, WorkflowStatus


def prune_runs(time_slice: TimeSlice) -> SliceResult:
    """Delete runs that ended longer ago than ``RETENTION_RUNS``, with their history.

    A run stays if its event may be delivered again: its ``origin_key`` prevents a second start. A withdrawn run has not
    started, and needs no such protection.
    """
    before = time_slice.now - conf().retention("RUNS")
    ended = WorkflowRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    withdrawn = Q(status=WorkflowStatus.WITHDRAWN)
    return prune_in_batches(
        ended.filter(Q(event=None) | has_final_date("event__") | withdrawn), "created_at", before, time_slice
    )


def prune_history(time_slice: TimeSlice) -> SliceResult:
    """Delete the history of runs that ended as long ago but stay.

    A run that may be resumed, because it or its path has failed, keeps its history, which records what it has consumed.
    """
    before = time_slice.now - conf().retention("RUNS")
    final = [WorkflowStatus.COMPLETED, WorkflowStatus.CANCELLED]
    history = StepExecution.objects.filter(run__status__in=final, run__finished_at__lt=before, run__ending__isnull=True)
    return prune_in_batches(history, "finished", before, time_slice)


def prune_unfinished_history(time_slice: TimeSlice) -> SliceResult:
    """Delete history of unfinished runs that is older than ``RETENTION_HISTORY``: a run that loops never ends.

    What such a run still needs stays: its last two visits (attempts, losses, the time of its last step); the record of
    each consumed signal or event that still exists and could be received again; and which step has started a child
    that still exists. It needs no attempt that raised ``RetryAfter``, of which one visit may have any number.
    """
    before = time_slice.now - conf().retention("HISTORY")
    run = WorkflowRun.objects.filter(pk=OuterRef("run")).unfinished()
    children = WorkflowRun.objects.filter(parent=OuterRef("run"), created_at__lt=before)
    signal, event = (Exists(each.objects.filter(pk=OuterRef("wake_ref"))) for each in (Signal, Event))
    consumed = Q(signal, wake_reason="signal") | Q(event, wake_reason="event")
    is_old_visit = Exists(run.filter(visit__gt=OuterRef("visit") + 1))
    is_needed = Q(consumed) | Q(Exists(children), outcome__in=STARTING)
    deferred = Q(Exists(run), outcome=DEFERRED)
    history = StepExecution.objects.filter(deferred | Q(is_old_visit) & ~is_needed, finished__lt=before)
    return prune_in_batches(history, "finished", before, time_slice)


def prune_signals(time_slice: TimeSlice) -> SliceResult:
    """Delete signals that no run can consume, delivered longer ago than ``RETENTION_SIGNALS``."""
    before = time_slice.now - conf().retention("SIGNALS")
    waiting_for = WorkflowRun.objects.unfinished().filter(wake_reason="signal", wake_ref=OuterRef("pk"))
    delivered = Signal.objects.filter(delivered_at__lt=before).filter(~Exists(waiting_for))
    done = delivered.filter(Q(run=None) | Q(consumed_at__isnull=False) | Q(run__status__in=FINISHED))
    return prune_in_batches(done, "sent_at", before, time_slice)
