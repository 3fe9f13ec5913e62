"""What maintenance may remove on this floor."""

from __future__ import annotations

from django.db.models import Q

from ..conf import conf
from ..queues.maintenance import SliceResult, TimeSlice
from ..queues.pruning import prune_in_batches
from .models import FINISHED, AgentRun, HandlerExecution, HandlerStatus

DONE = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED, HandlerStatus.CANCELLED)


def prune_agents(turn: TimeSlice) -> SliceResult:
    """Remove agents that ended longer ago than ``RETENTION_AGENTS``, with their mailboxes."""
    before = turn.now - conf().kept("AGENTS")
    ended = AgentRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    return prune_in_batches(ended, "created_at", before, turn)


def prune_executions(turn: TimeSlice) -> SliceResult:
    """Remove what agents, also living ones, did longer ago than ``RETENTION_EXECUTIONS``.

    An execution of an event that is still to be told, or that may fire once more because its date moves, stays: its
    ``unique_key`` keeps it from being done twice.
    """
    before = turn.now - conf().kept("EXECUTIONS")
    done = HandlerExecution.objects.filter(status__in=DONE, finished_at__lt=before, event__pending_notifications=[])
    return prune_in_batches(done.filter(Q(milestone="") | Q(event__active_key=None)), "created_at", before, turn)
