"""Retention: which agents and executions maintenance deletes."""

from __future__ import annotations

from django.db.models import Q

from ..conf import conf
from ..events.models import has_final_date
from ..queues.periodic_tasks import SliceResult, TimeSlice
from ..queues.pruning import prune_in_batches
from .models import FINISHED, AgentRun, HandlerExecution, HandlerStatus

DONE = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED, HandlerStatus.CANCELLED)


def prune_agents(time_slice: TimeSlice) -> SliceResult:
    """Delete agents that ended longer ago than ``RETENTION_AGENTS``, with their mailboxes."""
    before = time_slice.now - conf().retention("AGENTS")
    ended = AgentRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    return prune_in_batches(ended, "created_at", before, time_slice)


def prune_executions(time_slice: TimeSlice) -> SliceResult:
    """Delete handler executions that finished longer ago than ``RETENTION_EXECUTIONS``, also of active agents.

    If an event has pending notifications, or may fire again because its date can move, its executions stay: their
    ``unique_key`` prevents a second execution.
    """
    before = time_slice.now - conf().retention("EXECUTIONS")
    done = HandlerExecution.objects.filter(status__in=DONE, finished_at__lt=before, event__pending_notifications=[])
    final = done.filter(Q(milestone="") | has_final_date("event__"))
    return prune_in_batches(final, "created_at", before, time_slice)
