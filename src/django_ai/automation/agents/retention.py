"""What ``cleanup_old`` may remove on this floor."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Q

from ..conf import conf
from ..queues.cleaning import sweep
from .models import FINISHED, AgentRun, HandlerExecution, HandlerStatus

DONE = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED, HandlerStatus.CANCELLED)


def remove_agents(now: datetime, until: float) -> int:
    """Remove agents that ended longer ago than ``RETENTION_AGENTS``, with their mailboxes."""
    before = now - conf().kept("AGENTS")
    ended = AgentRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    return sweep(ended, "created_at", before, until)


def remove_executions(now: datetime, until: float) -> int:
    """Remove what agents, also living ones, did longer ago than ``RETENTION_EXECUTIONS``.

    An execution of an event that is still to be told, or that may fire once more because its date moves, stays: its
    ``unique_key`` keeps it from being done twice.
    """
    before = now - conf().kept("EXECUTIONS")
    done = HandlerExecution.objects.filter(status__in=DONE, finished_at__lt=before, event__telling=False)
    return sweep(done.filter(Q(beat="") | Q(event__active_key=None)), "created_at", before, until)
