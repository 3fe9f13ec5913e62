"""Finds what changed behind Django's back: dates set with ``QuerySet.update``, rows made with ``bulk_create``, and what
a new deployment wants of events that were recorded before it.

Only entities whose date is near are looked at, by their own date column: what is far away is found when it comes near,
and a date that was put off is noticed when the event wakes, because it is read from the entity again. So the work
follows what is due soon, not how much there is.

Among those the database itself finds the ones that differ: an entity is passed by if it has an event row whose date is
its date, and whose timer was set by code with today's subscribers (``planned_for``). Only the others are read. A
condition is Python, and a false one may have turned true: such a row is read, too, for as long as it may still occur.
The comparison may report too much, never too little: what is read is compared once more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from itertools import islice
from typing import Any

from django.db import connections, models, transaction
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When

from ...conf import conf
from ...db.errors import is_database_failure
from ...db.locks import skipping_locked
from ...db.writer import alias_of
from ...exceptions import AutomationError
from ...queues.periodic_tasks import SliceResult, TimeSlice
from ...values.clock import aware, shift
from ...values.text import trace_of
from ..definitions import Declared, declared_on, declaring_models, entity_id_of, stored_entity_id
from ..models import Event, EventStatus, active_key
from ..subscribers import subscribers
from ..timing import next_wake, plan_of, reach_of, too_late
from .recorder import record

logger = logging.getLogger("django_ai.automation")

CHUNK = 200
"""Entities that are read and brought in line in one transaction."""
PAGE = 10_000
"""Keys that one query finds."""
DAYS = 50
"""Dates that one query compares: each is compared with its own midnight."""


def reconcile_dates(now: datetime) -> int:
    """Bring all rows of scheduled events near ``now`` in line with their entities; return how many were written."""
    return take_dates(TimeSlice(now)).done


def take_dates(turn: TimeSlice) -> SliceResult:
    """Bring rows of scheduled events in line with their entities, as long as the turn lasts.

    A model whose entities cannot be read or judged does not stop the others: its error is raised after them. A
    database failure is raised at once. The position: the declaration at which it stopped, ``after`` which entity, and
    what has failed before.
    """
    place = turn.position or {}
    todo = {
        f"{declared.label}:{declared.definition.name}": (model, declared)
        for model in declaring_models()
        for declared in declared_on(model)
        if declared.owner is model and declared.definition.date_field
    }
    names = list(todo)
    if place.get("at") not in todo:  # it begins, or the code has changed meanwhile
        place = {}
    written, failed, told = 0, None, place.get("failed", "")
    for number in range(names.index(place["at"]) if place else 0, len(names)):
        model, declared = todo[names[number]]
        after: list[str] | None = None
        try:
            count, after = _reconcile(model, declared, turn, place.get("after"))
            written += count
        except Exception as error:
            if is_database_failure(error, connections[alias_of(Event)]):
                raise
            logger.exception("Reconciling %r of %s failed", declared.definition.name, declared.label)
            failed, told = failed or error, told or trace_of(error)
        place = {}
        following = names[number : number + 1] if after else names[number + 1 : number + 2]
        if turn.is_over and following:
            return SliceResult(written, {"at": following[0], "after": after, "failed": told})
    if failed is not None:
        raise failed
    if told:
        raise AutomationError(f"An event could not be reconciled:\n{told}")
    return SliceResult(written)


def _window(declared: Declared, now: datetime) -> tuple[datetime, datetime]:
    """Return between which dates an entity's event may want something until the next look."""
    reaches = [shift(now, offset) - now for offset in reach_of(declared.definition.name)] + [timedelta(0)]
    return (
        now - declared.definition.grace - max(reaches),
        now + conf().RECONCILE_HORIZON - min(reaches),
    )


def _reconcile(
    model: type[models.Model], declared: Declared, turn: TimeSlice, after: list[str] | None
) -> tuple[int, list[str] | None]:
    """Return how many rows were written, and the date and key after which the next bite goes on, if there is more."""
    rows, written, now = model._base_manager.using(alias_of(model)), 0, turn.now
    for page in _pages(model, declared, now, after):
        for start in range(0, len(page), CHUNK):
            part = page[start : start + CHUNK]
            with transaction.atomic(using=alias_of(Event)):
                chunk = list(rows.filter(pk__in=[pk for _, pk in part]).order_by("pk"))
                if chunk:
                    written += record(chunk, now, read_before=True, only=declared) + _rewake(chunk, declared, now)
            if turn.is_over:
                moment, pk = part[-1]
                return written, [moment.isoformat(), entity_id_of(model, pk)]
    return written, None


def _pages(
    model: type[models.Model], declared: Declared, now: datetime, after: list[str] | None
) -> Iterator[list[tuple[Any, Any]]]:
    """Yield the dates and keys of the entities that seem to differ from their event rows, in that order, those
    ``after`` a date and key."""
    name = str(declared.definition.date_field)
    field: Any = model._meta.get_field(name)
    reached = after and (field.to_python(after[0]), model._meta.pk.to_python(after[1]))
    for first, last, at in _spans(model, name, *_window(declared, now)):
        found = model._base_manager.using(alias_of(model)).alias(automation_at=at)
        # Rows of another database cannot be compared with event rows; a check refuses such a model (E101).
        if (key := stored_entity_id(model)) is not None and alias_of(model) == alias_of(Event):
            found = found.alias(automation_key=key).exclude(Exists(_in_line(declared)))
        found = found.order_by(name, "pk").values_list(name, "pk")
        while reached is None or reached[0] <= last:
            rest = Q(**{f"{name}__range": (first, last)})
            if reached is not None:
                rest = Q(**{f"{name}__range": (max(first, reached[0]), last)})
                rest &= Q(**{f"{name}__gt": reached[0]}) | Q(**{name: reached[0]}, pk__gt=reached[1])
            page = list(islice(found.filter(rest)[:PAGE], PAGE))
            if not page:
                break
            yield page
            reached = page[-1]


def _spans(
    model: type[models.Model], name: str, first: datetime, last: datetime
) -> Iterator[tuple[Any, Any, models.expressions.Combinable]]:
    """Yield ranges of the date column, each with what the ``at`` of its event rows is."""
    field = model._meta.get_field(name)
    if isinstance(field, models.DateTimeField):
        yield first, last, F(name)
        return
    begin, end = first.date(), last.date() + timedelta(days=1)
    while begin <= end:
        days = [day for number in range(DAYS) if (day := _days_after(begin, number)) is not None and day <= end]
        whens = [When(**{name: day}, then=Value(aware(day, name), models.DateTimeField())) for day in days]
        yield days[0], days[-1], Case(*whens, output_field=models.DateTimeField())
        following = _days_after(begin, DAYS)
        if following is None:
            return
        begin = following


def _days_after(day: date, number: int) -> date | None:
    try:
        return day + timedelta(days=number)
    except OverflowError:  # the end of the calendar
        return None


def _in_line(declared: Declared) -> models.QuerySet[Event, Event]:
    """Return the event rows that need no look, for an entity of an outer query that has its key and date."""
    definition = declared.definition
    # What may still occur is looked at while its condition is false, and where its name is made of the entity's fields.
    looks_by_itself = Q(armed=True) | Q(wake_at=None)
    if definition.may_be_renamed:
        looks_by_itself &= ~Q(status=EventStatus.PENDING)
    rests = Q(status__in=[EventStatus.EXPIRED, EventStatus.PARKED])
    return Event.objects.filter(
        Q(status=EventStatus.CANCELLED)
        | (Q(at=OuterRef("automation_at")) & (rests | (looks_by_itself & Q(planned_for=plan_of(definition.name))))),
        entity_id=OuterRef("automation_key"),
        entity_type=declared.label,
        declared_as=definition.name,
        active_key__isnull=False,
    )


def _rewake(entities: Sequence[models.Model], declared: Declared, now: datetime) -> int:
    """Give rows their timer for offsets that were not wanted when they were recorded, and plan what is planned for
    them."""
    keys = [active_key(declared.label, declared.entity_id_of(entity), declared.definition.name) for entity in entities]
    live = [EventStatus.PENDING, EventStatus.PROCESSED]
    # Nobody is waited for: what somebody else has locked is left to the next look.
    rows = list(skipping_locked(Event.objects.filter(active_key__in=keys, status__in=live, lease=None, attempt=0)))
    plan, written = plan_of(declared.definition.name), 0
    for row in rows:
        late = too_late(row, declared.definition, now)
        changes: dict[str, Any] = {}
        if late and (row.wake_at is None or row.wake_at > now):
            # Nothing is overdue, so these offsets are new: what was long past when they came is not made up for.
            changes["fired"] = row.fired = [*row.fired, *late]
        wake_at = next_wake(row, declared.definition, now)
        if wake_at is not None and (row.wake_at is None or wake_at < row.wake_at):
            changes["wake_at"] = wake_at
            written += 1
        if changes:
            Event.objects.filter(pk=row.pk).update(**changes)
    for listener in subscribers():
        listener.plan(rows, now, fresh=False)
    others = [row.pk for row in rows if row.planned_for != plan]
    if others:
        Event.objects.filter(pk__in=others).update(planned_for=plan)
    return written
