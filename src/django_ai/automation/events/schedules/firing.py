"""A worker's path for one schedule: which times have come, which of them are fired, and when is the next.

Each time is an event with a key made of the schedule and the time, so no time is fired twice. The events and the next
time are one commit.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction

from ...db.writer import alias_of
from ...exceptions import CodeError, DefinitionError, UnknownScheduleError
from ...queues.advance import advance
from ...queues.history import note
from ...queues.parking import reason_of
from ...values.clock import Clock
from ...values.timetable import MAX_CATCH_UP, Timetable
from ..emission import emit
from ..models import CallbackExecution, Event, EventStatus, ExecutionStatus, Schedule, ScheduleOverlap
from ..subscribers import subscribers
from .definitions import ScheduleDefinition, event_name_of, find_schedule, targets

ON_TIME = timedelta(seconds=60)
"""A time counts as missed when it is performed later than this."""
QUEUE_CHECK_INTERVAL = timedelta(seconds=5)
"""How often a time that waits for the end of the last one is looked at again."""


def perform_schedule(row: Schedule, clock: Clock) -> None:
    """Fire the times that have come, and make the row due at the next one."""
    now = clock()
    try:
        check_known(row)
        times = timetable_of(row)
    except CodeError as error:
        row.park(reason_of(row, error), clock, awaiting_deploy=True)
        return
    except DefinitionError as error:
        row.park(str(error), clock)
        return
    come, missed = _come(row, times, now)
    fired, left = _admitted(row, come)
    reached = come[-1] if not left and come else (fired[-1] if fired else row.reached)
    if not left:
        reached = max(now, reached)
    with transaction.atomic(using=alias_of(Schedule)):
        events = [_emit(row, each) for each in fired]
        changes: dict[str, Any] = {
            "reached": reached,
            "wake_at": now + QUEUE_CHECK_INTERVAL if left else times.after(reached, row.anchor),
            "lease": None,
            "skipped": row.skipped + missed + (0 if left else len(come) - len(fired)),
        }
        if row.error or row.parked_at is not None:
            changes |= {"error": "", "parked_at": None}
        if events:
            changes |= {"fired": row.fired + len(events), "fired_at": now, "last_event_id": events[-1].pk}
        advance(row, changes)


def fire_now(row: Schedule, now: datetime) -> Event:
    """Start the target of a schedule now, whatever its timetable and overlap say. Returns the event."""
    with transaction.atomic(using=alias_of(Schedule)):
        event = emit(
            event_name_of(row.target), _payload(row, now), key=f"{row.name}@{now.isoformat()}#{secrets.token_hex(4)}"
        )
        Schedule.objects.filter(pk=row.pk).update(fired_at=now, last_event=event)
        note(row, "Fired")
    return event


def check_known(row: Schedule) -> None:
    """Raise ``UnknownScheduleError`` if this code does not have the schedule, or its target."""
    if row.is_declared and find_schedule(row.name) is None:
        raise UnknownScheduleError(
            f"{row}: no @schedule is called {row.name!r} any longer. Restore it and the schedule continues, or delete "
            "this row."
        )
    if row.target not in targets():
        raise UnknownScheduleError(
            f"{row}: there is no workflow or scheduled function {row.target!r}. Restore it and the schedule continues, "
            "or change the target."
        )


def timetable_of(row: Schedule) -> Timetable:
    """Return when the schedule is due, as code declares it or as the row has it. Raises ``DefinitionError``."""
    declared = find_schedule(row.name) if row.is_declared else None
    return row.timetable if declared is None else declared.timetable


def _come(row: Schedule, times: Timetable, now: datetime) -> tuple[list[datetime], int]:
    """Return the times to fire, in their order, and how many were missed and are left out."""
    come = times.between(row.reached, now, row.anchor, MAX_CATCH_UP)
    if not come:
        return [], 0
    on_time = [each for each in come[-1:] if each >= now - ON_TIME]
    late = come[: len(come) - len(on_time)]
    if row.catch_up_within is not None:
        kept = [each for each in late if each >= now - row.catch_up_within]
    else:
        # A time may be late because it waits for the end of the last one: the latest is kept in any case.
        number = max(row.catch_up, 1) if row.overlap == ScheduleOverlap.QUEUE else row.catch_up
        kept = late[max(len(late) - number, 0) :]
    return [*kept, *on_time], len(late) - len(kept)


def _admitted(row: Schedule, come: Sequence[datetime]) -> tuple[list[datetime], bool]:
    """Return which of the times are fired now, and whether the others wait."""
    if row.overlap == ScheduleOverlap.ALLOW or not come:
        return list(come), False
    is_busy = row.last_event is not None and is_unfinished(row.last_event)
    if row.overlap == ScheduleOverlap.SKIP:
        return ([] if is_busy else list(come[:1])), False
    return ([], True) if is_busy else (list(come[:1]), len(come) > 1)


def is_unfinished(event: Event) -> bool:
    """Return whether what ``event`` has started has not ended."""
    if event.status == EventStatus.PENDING or event.status == EventStatus.PARKED:
        return True
    unfinished = [ExecutionStatus.PENDING, ExecutionStatus.PARKED]
    if CallbackExecution.objects.filter(event=event, status__in=unfinished).exists():
        return True
    return any(subscriber.is_unfinished(event) for subscriber in subscribers())


def _emit(row: Schedule, time: datetime) -> Event:
    return emit(event_name_of(row.target), _payload(row, time), key=f"{row.name}@{time.isoformat()}", at=time)


def _payload(row: Schedule, time: datetime) -> dict[str, Any]:
    return {"schedule": row.name, "scheduled_at": time.isoformat(), **row.arguments}


def columns_of(declared: ScheduleDefinition) -> dict[str, Any]:
    """Return the columns of the row of a declared schedule."""
    when = declared.timetable.when
    catch_up = declared.catch_up
    return {
        "target": declared.target,
        "cron": when if isinstance(when, str) else "",
        "every": when if isinstance(when, timedelta) else None,
        "timezone": str(declared.timetable.zone or ""),
        "arguments": dict(declared.arguments),
        "catch_up": catch_up if isinstance(catch_up, int) else 0,
        "catch_up_within": catch_up if isinstance(catch_up, timedelta) else None,
        "overlap": declared.overlap,
        "is_declared": True,
    }
