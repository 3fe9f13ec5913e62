"""What is planned in a period: rows that become due in it, and milestones of events with those that they notify.

It reads what is due soonest, up to a limit for each kind of row, by the indexes that workers use. No condition is
evaluated: an event row has the result of the last evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import models
from django.utils.translation import gettext

from ..agents.definitions import HandlerDefinition, SpawnOn
from ..agents.models import AgentRun
from ..events.callbacks import OCCURRED, Callback
from ..events.models import CallbackExecution, Event, EventStatus, Schedule
from ..events.subscriptions import Subscription, subscriptions
from ..events.timing import not_fired
from ..events.upcoming import Upcoming, if_true, offset_text
from ..queues.lane_counts import waking_rows
from ..queues.registry import due_times
from ..queues.wakeable import Wakeable
from ..workflows.definitions import Start
from ..workflows.models import WorkflowRun


@dataclass(frozen=True, slots=True)
class Period:
    """What is planned in a period, the earliest first. ``is_cut``: there is more than the limit."""

    planned: list[Upcoming]
    is_cut: bool


def planned_between(since: datetime | None, until: datetime, now: datetime, limit: int) -> Period:
    """Return what becomes due from ``since`` (None: including what is overdue) to ``until``.

    The number of queries is fixed; ``limit`` bounds the rows of each kind, and the list.
    """
    lanes = [lane for lane, at in due_times(with_paused=True).items() if at < until]
    # The milestones of events are found by their timers, which may have been earlier.
    events = [lane for lane in lanes if lane.model is Event]
    keys = waking_rows([lane for lane in lanes if lane not in events], since, until, limit + 1)
    keys |= waking_rows(events, None, until, limit + 1)
    found: list[Upcoming] = []
    is_cut = False
    for model, read in _READERS.items():
        rows, more = _first(model, keys.get(model, []), limit)
        found += [each for row in rows for each in read(row, since, until, now)]
        is_cut |= more
    found.sort(key=lambda each: each.at or until)
    return Period(found[:limit], is_cut or len(found) > limit)


def _first(model: type[Wakeable], keys: Sequence[int], limit: int) -> tuple[list[Any], bool]:
    """Return the first of the rows, which do not belong to parked or ended ones, and whether there are more."""
    if not keys:
        return [], False
    rows = sorted(_planned(model).filter(pk__in=keys), key=lambda row: (row.wake_at, row.pk))
    if rows and hasattr(model, "load_reasons"):
        model.load_reasons(rows[:limit])
    return rows[:limit], len(rows) > limit


def _planned(model: type[Any]) -> models.QuerySet[Any]:
    rows: models.QuerySet[Any]
    if model is Event:
        rows = Event.objects.filter(status__in=[EventStatus.PENDING, EventStatus.PROCESSED])
    elif model is Schedule:
        rows = Schedule.objects.filter(parked_at=None, paused_at=None)
    else:
        rows = model.unfinished().exclude(status="parked")
        rows = rows.select_related("event") if model is CallbackExecution else rows
    return rows.filter(wake_at__isnull=False)


Read = Callable[[Any, datetime | None, datetime, datetime], Iterable[Upcoming]]


def _row(kind: str, name_field: str) -> Read:
    def read(row: Any, since: datetime | None, until: datetime, now: datetime) -> Iterable[Upcoming]:
        return [Upcoming(kind, getattr(row, name_field), row.wake_at, row.waiting_text(now), row)]

    return read


def _milestones(event: Event, since: datetime | None, until: datetime, now: datetime) -> Iterator[Upcoming]:
    times = not_fired(event)
    if event.attempt or not times:
        assert event.wake_at is not None
        times = {"": event.wake_at} if event.status == EventStatus.PENDING else {}
    for milestone, at in times.items():
        if at >= until or (since is not None and at < since):
            continue
        if at < now and not event.armed:
            continue  # not overdue: as long as its condition is false, nothing happens
        told = list(notified(event, milestone))
        if milestone and not told:
            continue
        offset = next((each.offset for each, _ in told if each.offset is not None), None)
        reason = gettext("its date") if offset is None else offset_text(offset, repr(event.event_name))
        if names := [name for _, name in told]:
            reason = gettext("%(reason)s, notifies %(names)s") % {"reason": reason, "names": ", ".join(names)}
        yield Upcoming("event", event.event_name, at, reason if event.armed else if_true(reason), event)


_READERS: dict[type[Wakeable], Read] = {
    WorkflowRun: _row("workflow", "name"),
    AgentRun: _row("agent", "name"),
    CallbackExecution: _row("callback", "callback"),
    Schedule: _row("schedule", "name"),
    Event: _milestones,
}


def notified(event: Event, milestone: str) -> Iterator[tuple[Subscription, str]]:
    """Yield the subscriptions that a milestone of ``event`` notifies, and what to call them."""
    given = event.event_name, event.namespace
    for callback in subscriptions.subscribed_to(Callback, *given):
        if callback.fixed_milestone == OCCURRED and callback.milestone == milestone:
            yield callback, f"callback {callback.name}"
    for start in subscriptions.subscribed_to(Start, *given):
        if not milestone and start.workflow.offset is None:
            yield start, f"workflow {start.workflow.name}"
    for spawn_on in subscriptions.subscribed_to(SpawnOn, *given):
        if spawn_on.milestone == milestone:
            yield spawn_on, f"agent {spawn_on.agent.name}"
    for handler in subscriptions.subscribed_to(HandlerDefinition, *given):
        if handler.milestone == milestone:
            yield handler, f"handler {handler.agent}.{handler.method}"
