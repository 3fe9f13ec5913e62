"""Pruning of actions: who did what, a year ago."""

from __future__ import annotations

from ..conf import conf
from ..db.writer import alias_of
from .models import Action
from .periodic_tasks import SliceResult, TimeSlice
from .pruning import prune_in_batches


def prune_actions(time_slice: TimeSlice) -> SliceResult:
    """Delete actions that are older than ``RETENTION_ACTIONS``."""
    before = time_slice.now - conf().retention("ACTIONS")
    old = Action._base_manager.using(alias_of(Action)).filter(done_at__lt=before)
    return prune_in_batches(old, "done_at", before, time_slice)
