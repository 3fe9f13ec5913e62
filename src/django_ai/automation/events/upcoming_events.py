"""The source of ``upcoming`` for this layer: events that will occur, and callbacks."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import F
from django.utils.translation import gettext

from .callbacks import OCCURRED, callbacks_of
from .models import CallbackExecution, Event, EventStatus, ExecutionStatus
from .upcoming import Outlook, Upcoming, if_true, planned_moment


def events_and_callbacks(outlook: Outlook) -> Iterator[Upcoming]:
    """Yield the events of the object, the callbacks that they will call, and the callbacks that are to run again."""
    for event in outlook.events:
        yield from _event(event, outlook)
        for callback in callbacks_of(event.event_name, event.namespace):
            planned = planned_moment(event, callback) if callback.fixed_milestone == OCCURRED else None
            if planned is not None:
                yield Upcoming("callback", callback.name, *planned, event)
    executions = CallbackExecution.unfinished().filter(outlook.rows("event__"))
    listed = list(executions.order_by(F("wake_at").asc(nulls_last=True), "pk")[: outlook.limit])
    CallbackExecution.load_reasons(listed)
    for row in listed:
        at = None if row.status == ExecutionStatus.PARKED else row.wake_at
        yield Upcoming("callback", row.callback, at, row.waiting_text(outlook.now), row)


def _event(event: Event, outlook: Outlook) -> Iterator[Upcoming]:
    definition = event.definition
    if event.status == EventStatus.PARKED:
        yield Upcoming("event", event.event_name, None, event.waiting_text(outlook.now), event)
    elif event.status != EventStatus.PENDING or event.at is None:
        return  # it has occurred, and only offsets remain; or it has no date
    elif event.attempt or definition is None or not definition.is_scheduled:
        yield Upcoming("event", event.event_name, event.wake_at, event.waiting_text(outlook.now), event)
    else:
        reason = gettext("its date %s") % repr(definition.date_field)
        if event.timezone and event.is_on_a_day:
            reason += f" ({event.timezone})"
        yield Upcoming("event", event.event_name, event.at, reason if event.armed else if_true(reason), event)
