"""The rows of the schedules that code declares: inserted, and updated when the code has changed."""

from __future__ import annotations

from datetime import datetime

from ...db.inserts import insert_ignoring
from ...queues.lease import revoke
from ...queues.periodic_tasks import SliceResult, TimeSlice
from ..models import Schedule
from .definitions import all_schedules
from .firing import columns_of


def reconcile_schedules(time_slice: TimeSlice) -> SliceResult:
    """Insert the missing rows of declared schedules, and update those that differ; count both."""
    return SliceResult(ensure_rows(time_slice.now))


def ensure_rows(now: datetime) -> int:
    """Insert the missing rows of declared schedules, and update those that differ. Return how many were written.

    A new schedule is first due at its first time from now on. A changed timetable begins from now on, too.
    """
    declared = {each.name: each for each in all_schedules()}
    if not declared:
        return 0
    known = {row.name: row for row in Schedule.objects.filter(name__in=declared)}
    missing = []
    written = 0
    for name, each in declared.items():
        columns = columns_of(each)
        row = known.get(name)
        if row is None:
            wake_at = each.timetable.after(now, now)
            times = {"created_at": now, "anchor": now, "reached": now, "wake_at": wake_at}
            missing.append(Schedule(name=name, **columns, **times))
            continue
        changes = {column: value for column, value in columns.items() if getattr(row, column) != value}
        if not changes:
            continue
        if changes.keys() & {"cron", "every", "timezone"}:
            changes |= {"anchor": now, "reached": now}
            if row.paused_at is None:
                changes["wake_at"] = each.timetable.after(now, now)
        written += revoke(Schedule.objects.filter(pk=row.pk), **changes)
    return written + insert_ignoring(Schedule, missing)
