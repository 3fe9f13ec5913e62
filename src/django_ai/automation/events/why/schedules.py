"""Why a schedule fires when it fires, or does not: what its worker asks, with the functions that it asks by."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from ...exceptions import CodeError, DefinitionError
from ...queues.wakeable import at_text
from ...values.text import last_line
from ..models import Schedule, ScheduleOverlap
from ..schedules.definitions import event_name_of
from ..schedules.firing import check_known, is_unfinished, timetable_of
from .answers import Answer, Condition, Standing, verdict


def explain_schedule(row: Schedule, now: datetime) -> Answer:
    """Return why a schedule has not fired since its last time."""
    conditions = list(_conditions(row, now))
    standing, reason = verdict(conditions)
    if all(each.holds for each in conditions):
        standing, reason = Standing.WAITS, row.waits_for(now) or "It is about to fire."
    at = row.wake_at if standing in (Standing.WAITS, Standing.NOT_YET) else row.fired_at
    return Answer(
        "schedule", row.name, event_name_of(row.target), row.last_event_id, "", standing, reason, at, row, conditions
    )


def _conditions(row: Schedule, now: datetime) -> Iterator[Condition]:
    try:
        check_known(row)
        times = timetable_of(row)
    except (CodeError, DefinitionError) as error:
        yield Condition("declared", "code that has the schedule and its target", last_line(str(error)), False, True)
        return
    yield Condition("declared", "code that has the schedule and its target", repr(row.target), True)
    paused = "not paused" if row.paused_at is None else f"paused since {at_text(row.paused_at)}"
    yield Condition("pause", "not paused", paused, row.paused_at is None, may_change=True)
    parked = "not parked" if row.parked_at is None else last_line(row.error)
    yield Condition("parked", "not parked", parked, row.parked_at is None, may_change=True)
    following = times.after(row.reached, row.anchor)
    found = "there is no further time" if following is None else at_text(following)
    is_due = following is not None and following <= now
    yield Condition("time", f"a time up to now ({at_text(now)})", found, is_due, may_change=following is not None)
    if row.overlap != ScheduleOverlap.ALLOW:
        is_busy = row.last_event is not None and is_unfinished(row.last_event)
        found = "it has not" if is_busy else "it has"
        yield Condition("overlap", "what the last time has started has ended", found, not is_busy, may_change=True)
