"""Pruning of actions and bulk actions: who did what, a year ago."""

from __future__ import annotations

from ..conf import conf
from ..db.writer import alias_of
from .models import Action, BulkAction
from .periodic_tasks import SliceResult, TimeSlice
from .pruning import prune_in_batches


def prune_actions(time_slice: TimeSlice) -> SliceResult:
    """Delete actions that are older than ``RETENTION_ACTIONS``."""
    before = time_slice.now - conf().retention("ACTIONS")
    old = Action._base_manager.using(alias_of(Action)).filter(done_at__lt=before)
    return prune_in_batches(old, "done_at", before, time_slice)


def prune_bulk_actions(time_slice: TimeSlice) -> SliceResult:
    """Delete bulk actions that ended longer ago than ``RETENTION_ACTIONS``."""
    before = time_slice.now - conf().retention("ACTIONS")
    old = BulkAction._base_manager.using(alias_of(BulkAction)).filter(finished_at__lt=before)
    return prune_in_batches(old, "created_at", before, time_slice)
