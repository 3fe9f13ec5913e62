"""What ``cleanup_old`` may remove on this floor."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Q

from ..events.retention import remove_in_chunks
from .models import FINISHED, AgentRun, HandlerExecution, HandlerStatus

DONE = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED, HandlerStatus.CANCELLED)


def remove_old(before: datetime) -> int:
    """Remove agents that ended long ago, and of the living the executions that did.

    An execution of an event that is still to be told, or that may fire once more because its date moves, stays: its
    ``unique_key`` keeps it from being done twice.
    """
    ended = AgentRun.objects.filter(status__in=FINISHED, finished_at__lt=before)
    done = HandlerExecution.objects.filter(status__in=DONE, finished_at__lt=before, event__telling=False)
    done = done.filter(Q(beat="") | Q(event__active_key=None))
    return remove_in_chunks(ended) + remove_in_chunks(done)
