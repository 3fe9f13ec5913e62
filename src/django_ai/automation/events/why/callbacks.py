"""The explainer of callbacks: the rows of executions and windows, and else the conditions of the event."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from ...conf import conf
from ...queues.pausable import PausableWakeable
from ...values.clock import later
from ...values.text import last_line
from ..callbacks import CALLBACK, CANCELLED, CREATED, Callback
from ..models import CallbackExecution, CollectedEvent, Event, EventStatus, ExecutionStatus
from ..subscriptions import Subscription, subscriptions
from .answers import Answer, Condition, Standing, verdict
from .asking import Inquiry
from .event_conditions import EventConditions

STANDINGS = {
    "completed": Standing.RAN,
    "failed": Standing.FAILED,
    "cancelled": Standing.SKIPPED,
    "withdrawn": Standing.SKIPPED,
    "skipped": Standing.SKIPPED,
}
"""What the status of a row that has ended says."""


def explain_callbacks(inquiry: Inquiry) -> Iterator[Answer]:
    """Yield an answer for each event and callback."""
    events = inquiry.recorded
    rows = _executions(inquiry)
    windows = collected_in(CALLBACK, inquiry)
    targets = {pk for pk in windows.values() if pk is not None}
    handed = {row.pk: row for row in CallbackExecution.objects.filter(pk__in=targets)} if targets else {}
    conditions = EventConditions(inquiry.now)
    seen: set[tuple[int, str, str]] = set()
    for event in inquiry.events:
        for callback in subscriptions.all(Callback):
            if not inquiry.wants(callback, event):
                continue
            key = (event.pk or 0, callback.name, callback.milestone)
            seen.add(key)
            row, asked = rows.get(key), conditions.of(event, callback)
            if (event.pk, callback.name) in windows:
                target = windows[event.pk, callback.name]
                row = handed.get(target or 0, row)
                asked.append(in_window(target is not None))
            asked += _of_milestone(event, callback)
            yield answer(event, callback, row, asked, inquiry)
    for key, row in rows.items():
        if key not in seen and inquiry.subscriber in ("", row.callback):
            yield answer_without_code(CALLBACK, row.callback, events[row.event_id], row, inquiry, row.milestone)


def _executions(inquiry: Inquiry) -> dict[tuple[int, str, str], CallbackExecution]:
    found = CallbackExecution.objects.filter(event__in=inquiry.recorded).order_by("-pk")
    if inquiry.subscriber:
        found = found.filter(callback=inquiry.subscriber)
    rows = list(found[: inquiry.limit * 4])
    CallbackExecution.load_reasons([row for row in rows if row.status == ExecutionStatus.PENDING])
    return {(row.event_id, row.callback, row.milestone): row for row in rows}


def collected_in(kind: str, inquiry: Inquiry) -> dict[tuple[int | None, str], int | None]:
    """Return for each event and name that collects it the primary key of the row that it was handed to."""
    if not subscriptions.has_windows:
        return {}
    found = CollectedEvent.objects.filter(kind=kind, event__in=inquiry.recorded)
    return {(event, name): target for event, name, target in found.values_list("event", "name", "target")}


def in_window(is_closed: bool) -> Condition:
    """Return the condition of an event that was collected with others."""
    found = "it was handed over with the others" if is_closed else "it is open, and the event waits in it"
    return Condition("window", "its window is closed", found, is_closed, may_change=not is_closed)


def _of_milestone(event: Event, callback: Callback) -> Iterator[Condition]:
    if callback.fixed_milestone == CANCELLED and event.pk is not None:
        is_cancelled = event.status == EventStatus.CANCELLED
        may_change = event.status in (EventStatus.PENDING, EventStatus.PARKED)
        yield Condition("cancelled", "the event is cancelled", str(event.status), is_cancelled, may_change)
    elif callback.fixed_milestone == CREATED and event.pk is not None:
        is_due = CREATED not in event.fired
        if is_due:
            yield Condition("recorded", "a worker has seen that it was recorded", "not yet", False, may_change=True)


def answer(
    event: Event,
    subscription: Subscription,
    row: PausableWakeable | None,
    asked: list[Condition],
    inquiry: Inquiry,
    waits_for: str = "",
) -> Answer:
    """Return the answer of a subscriber: what its row says, and without one what the conditions say.

    ``waits_for``: what the row waits for, if that is known.
    """
    kind, name = subscription.subscriber
    found = Answer(kind, name, event.event_name, event.pk, subscription.milestone, Standing.NOT_YET, "", row=row)
    found.conditions = asked
    if row is not None:
        found.standing, found.reason, found.at = of_row(row, inquiry.now, waits_for)
        return found
    if event.pk is not None and all(each.holds is not False for each in asked):
        asked.append(registered_since(event, subscription, inquiry.now))
    found.standing, found.reason = verdict(asked)
    if found.standing is Standing.NOT_YET and event.at is not None:
        found.at = event.moment_of(subscription.offset) if subscription.offset else event.at
    return found


def of_row(row: PausableWakeable, now: datetime, waits_for: str = "") -> tuple[Standing, str, datetime | None]:
    """Return what a row says of its subscriber: the standing, the reason, and when."""
    status: str = getattr(row, "status", "")
    started = getattr(row, "started_at", None)
    begun = started or getattr(row, "finished_at", None) or getattr(row, "created_at", None)
    if status in STANDINGS:
        return STANDINGS[status], last_line(getattr(row, "error", "")) or f"{row}: {status}", begun
    waits_for = waits_for or row.waits_for(now)
    reason = f"{row} waits for {waits_for}" if waits_for else f"{row}: {status}"
    if started is not None and status != "parked" and not isinstance(row, CallbackExecution):
        return Standing.RAN, reason, begun  # it has begun, and continues
    return Standing.WAITS, reason, row.wake_at or begun


def registered_since(event: Event, subscription: Subscription, now: datetime) -> Condition:
    """Return the condition that is left where all others hold and no row exists: the event fired before the code had
    this subscriber. Old rows are pruned, so that is unknown after the retention."""
    position = event.position_of("" if subscription.fixed_milestone else subscription.milestone)
    fired_at = event.occurred_at or event.event_created_at
    expected = "the subscriber was there when the event fired"
    is_timed = bool(subscription.offset) and subscription.milestone not in event.fired
    if event.pending_notifications or (is_timed and subscription.uses_event_timer) or event.wake_at is not None:
        return Condition("registered since", expected, "it is about to be asked", False, may_change=True)
    if fired_at < later(now, -_retention()):
        return Condition("registered since", expected, "what it did may have been pruned (RETENTION)", None)
    found = "it has fired without it: the code did not have this subscriber, or not in this namespace"
    return Condition("registered since", expected, found, False if position or event.occurred_at else None)


def _retention() -> timedelta:
    return min(conf().retention("EXECUTIONS"), conf().retention("RUNS"), conf().retention("AGENTS"))


def answer_without_code(
    kind: str,
    name: str,
    event: Event,
    row: PausableWakeable,
    inquiry: Inquiry,
    milestone: str = "",
    waits_for: str = "",
) -> Answer:
    """Return the answer of a row whose subscriber is no longer in the code, or no longer subscribes to the event."""
    standing, reason, at = of_row(row, inquiry.now, waits_for)
    found = "no declaration" if standing is Standing.WAITS else "it was there when the event fired"
    gone = Condition("declared", "code that subscribes to the event", found, False if found[0] == "n" else None, True)
    return Answer(kind, name, event.event_name, event.pk, milestone, standing, reason, at, row, [gone])
