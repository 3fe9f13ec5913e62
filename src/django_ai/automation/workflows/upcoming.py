"""The source of ``upcoming`` for workflows: runs of the object, runs that its events will start, and runs that wait for
an event of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from django.db import connections
from django.db.models import F
from django.utils.translation import gettext

from ..db.errors import is_database_failure
from ..db.savepoints import savepoint_on_query
from ..db.writer import alias_of
from ..events.declarations import declared_on
from ..events.matching.match import entity_keys, namespaced_key
from ..events.models import Event, EventStatus, RoutingShape, Shapes
from ..events.subscriptions import subscriptions
from ..events.upcoming import Outlook, Upcoming, planned_moment
from .definitions import Start
from .models import Wait, WorkflowRun
from .starting import origin_key
from .statuses import WorkflowStatus
from .wait_keys import WAITS


def runs_of_workflows(outlook: Outlook) -> Iterator[Upcoming]:
    """Yield the runs of the object, those that its events will start, and those that wait for an event of it."""
    rows = WorkflowRun.unfinished().filter(outlook.rows())
    listed = list(rows.order_by(F("wake_at").asc(nulls_last=True), "pk")[: outlook.limit])
    WorkflowRun.load_reasons(listed)
    for run in listed:
        yield Upcoming("workflow", run.name, _due(run, outlook.now), reason_of(run, outlook.now), run)
    yield from _runs_to_start(outlook)
    yield from _runs_that_wait(outlook, {run.pk for run in listed})


def _waits(run: WorkflowRun) -> list[Wait]:
    return [wait for wait in run.waits.all() if wait.visit == run.visit]


def _due(run: WorkflowRun, now: datetime) -> datetime | None:
    """Return when the run continues. A worker that performs it now, or is about to, has no later date."""
    if run.status == WorkflowStatus.PARKED:
        return None
    if run.lease is not None:
        return now
    if run.status == WorkflowStatus.SUSPENDED:
        times = [run.next_deadline, *(wait.deadline for wait in _waits(run))]
        return min((each for each in times if each is not None), default=None)
    return run.wake_at


def reason_of(run: WorkflowRun, now: datetime) -> str:
    """Return what the run waits for, without a query for each child run."""
    if run.status == WorkflowStatus.SUSPENDED and run.lease is None and (run.wake_at is None or run.wake_at > now):
        reason = run.suspended_reason(gettext("the end of its child run"))  # without a query for each child
        return run.with_path(reason)
    return run.waiting_text(now)


def _runs_to_start(outlook: Outlook) -> Iterator[Upcoming]:
    """Yield the workflows that pending events will start. A planned run is a row, which is listed as such."""
    found = []
    for event in outlook.events:
        if event.status == EventStatus.PENDING:
            for start in subscriptions.subscribed_to(Start, event.event_name, event.namespace):
                planned = planned_moment(event, start)
                if planned is not None:
                    found.append((event, start.workflow, planned))
    keys = [origin_key(event, workflow) for event, workflow, _ in found if workflow.offset is not None]
    known: Collection[str | None] = ()
    if keys:
        present = WorkflowRun.objects.filter(origin_key__in=keys).exclude(status=WorkflowStatus.WITHDRAWN)
        known = set(present.values_list("origin_key", flat=True))
    for event, workflow, planned in found:
        if origin_key(event, workflow) not in known:
            yield Upcoming("workflow", workflow.name, *planned, event)


def _runs_that_wait(outlook: Outlook, listed: Collection[int]) -> Iterator[Upcoming]:
    """Yield the runs that wait for an event whose match finds this object. Those that wait for an event of any object
    are left out."""
    events = _possible_events(outlook)
    shapes = RoutingShape.of(events) if events else None
    keys = {key: event for event in events for key in _keys(event, shapes)}
    if not keys:
        return
    dates = {event.declared_as: event.at for event in outlook.events if event.status == EventStatus.PENDING}
    waits = Wait.objects.under(list(keys)).exclude(run__in=listed).select_related("run").prefetch_related("run__waits")
    for wait in waits.order_by("pk")[: outlook.limit]:
        times = [dates.get(keys[wait.key].declared_as), _due(wait.run, outlook.now)]
        at = min((each for each in times if each is not None), default=None)
        yield Upcoming("workflow", wait.run.name, at, wait.run.with_path(wait.description), wait.run)


def _keys(event: Event, shapes: Shapes | None) -> list[str]:
    named = [] if shapes is None else [shape for shape in shapes.of(WAITS, event) if shape]
    keys = entity_keys(event.event_name, event.entity, named)
    return keys + [namespaced_key(event.namespace, key) for key in keys] if event.namespace else keys


def _possible_events(outlook: Outlook) -> Sequence[Event]:
    """Return an unsaved event for each definition of the object, with its name and namespace now."""
    found = []
    for declared in declared_on(type(outlook.entity)):
        definition = declared.definition
        try:
            with savepoint_on_query(alias_of(Event)):
                name, namespace = definition.name_for(outlook.entity), definition.namespace_of(outlook.entity)
        except Exception as error:  # a function of the project: this event has no name, so no run waits for it
            if is_database_failure(error, connections[alias_of(Event)]):
                raise
            continue
        event = Event(event_name=name, declared_as=definition.name, namespace=namespace)
        event.entity = outlook.entity
        found.append(event)
    return found
