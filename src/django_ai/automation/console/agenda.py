"""What is planned in a period: rows that become due in it, and milestones of events with those that they notify.

It reads what is due soonest, up to a limit for each kind of row, by the indexes that workers use. No condition is
evaluated: an event row has the result of the last evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..agents.definitions import HandlerDefinition, SpawnOn
from ..agents.models import AgentRun, AgentStatus
from ..events.callbacks import OCCURRED, Callback
from ..events.models import CallbackExecution, Event, EventStatus, Schedule
from ..events.subscriptions import Subscription, subscriptions
from ..events.timing import not_fired
from ..events.upcoming import IF_TRUE, Upcoming, offset_text
from ..workflows.definitions import Start
from ..workflows.models import WorkflowRun
from ..workflows.statuses import WorkflowStatus


@dataclass(frozen=True, slots=True)
class Period:
    """What is planned in a period, the earliest first. ``is_cut``: there is more than the limit."""

    planned: list[Upcoming]
    is_cut: bool


def planned_between(since: datetime | None, until: datetime, now: datetime, limit: int) -> Period:
    """Return what becomes due from ``since`` (None: including what is overdue) to ``until``.

    The number of queries is fixed; ``limit`` bounds the rows of each kind, and the list.
    """
    found: list[Upcoming] = []
    is_cut = False
    for read in (_runs, _agents, _callbacks, _schedules, _events):
        rows, more = read(since, until, now, limit)
        found += rows
        is_cut |= more
    found.sort(key=lambda each: each.at or until)
    return Period(found[:limit], is_cut or len(found) > limit)


Read = tuple[list[Upcoming], bool]


def _due(rows: Any, since: datetime | None, until: datetime, limit: int) -> tuple[list[Any], bool]:
    rows = rows.filter(wake_at__lt=until)
    rows = rows if since is None else rows.filter(wake_at__gte=since)
    found = list(rows.order_by("wake_at", "pk")[: limit + 1])
    if found and hasattr(type(found[0]), "load_reasons"):
        type(found[0]).load_reasons(found[:limit])
    return found[:limit], len(found) > limit


def _runs(since: datetime | None, until: datetime, now: datetime, limit: int) -> Read:
    unfinished = WorkflowRun.unfinished().exclude(status=WorkflowStatus.PARKED)
    rows, more = _due(unfinished, since, until, limit)
    return [Upcoming("workflow", row.name, row.wake_at, row.waits_for(now), row) for row in rows], more


def _agents(since: datetime | None, until: datetime, now: datetime, limit: int) -> Read:
    unfinished = AgentRun.unfinished().exclude(status=AgentStatus.PARKED)
    rows, more = _due(unfinished, since, until, limit)
    return [Upcoming("agent", row.name, row.wake_at, row.waits_for(now), row) for row in rows], more


def _callbacks(since: datetime | None, until: datetime, now: datetime, limit: int) -> Read:
    unfinished = CallbackExecution.unfinished().exclude(status="parked").select_related("event")
    rows, more = _due(unfinished, since, until, limit)
    return [Upcoming("callback", row.callback, row.wake_at, row.waits_for(now), row) for row in rows], more


def _schedules(since: datetime | None, until: datetime, now: datetime, limit: int) -> Read:
    rows, more = _due(Schedule.objects.filter(parked_at=None, paused_at=None), since, until, limit)
    return [Upcoming("schedule", row.name, row.wake_at, row.waits_for(now), row) for row in rows], more


def _events(since: datetime | None, until: datetime, now: datetime, limit: int) -> Read:
    """Return the milestones. The timer of an event is its earliest one, so each of the period is found by it."""
    live = Event.objects.filter(status__in=[EventStatus.PENDING, EventStatus.PROCESSED])
    rows, more = _due(live, None, until, limit)
    return [each for row in rows for each in _milestones(row, since, until)], more


def _milestones(event: Event, since: datetime | None, until: datetime) -> Iterator[Upcoming]:
    times = not_fired(event)
    if event.attempt or not times:
        assert event.wake_at is not None
        times = {"": event.wake_at} if event.status == EventStatus.PENDING else {}
    for milestone, at in times.items():
        if at >= until or (since is not None and at < since):
            continue
        told = list(notified(event, milestone))
        if milestone and not told:
            continue
        offset = next((each.offset for each, _ in told if each.offset is not None), None)
        reason = "its date" if offset is None else f"{offset_text(offset)} {event.event_name!r}"
        if names := [name for _, name in told]:
            reason += f", notifies {', '.join(names)}"
        if not event.armed:
            reason += f", {IF_TRUE}"
        yield Upcoming("event", event.event_name, at, reason, event)


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
