"""Reconcile event rows with writes that bypass Django's signals (``QuerySet.update``, ``bulk_create``), and with new
subscriptions.

Only entities whose date is near are compared, by their own date column. A date that is far away is found when it comes
near, and one that was postponed is noticed when the event wakes, because the event reads it from the entity again. So
the cost depends on how much is due soon, not on the size of the tables.

Among those the database finds the ones that differ: it skips an entity whose event row has the entity's date and time
zone, and a timer that was set for today's subscribers (``planned_for``). Only the others are read. A condition is
Python, and a false one may have become true, so its row is read for as long as it may still occur; and so is the row of
an event whose time zone only Python knows. The query may report too much, never too little: what is read is compared
once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

from django.db import connections, models, transaction
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When
from django.db.models.expressions import Combinable

from ...conf import conf
from ...db.errors import is_database_failure
from ...db.locks import skipping_locked
from ...db.writer import alias_of
from ...exceptions import AutomationError
from ...queues.periodic_tasks import SliceResult, TimeSlice
from ...values.clock import aware, in_utc, later, shift, variation
from ...values.text import trace_of
from ...values.zones import zone_or_default
from ..declarations import Declared, declared_on, declaring_models
from ..definitions import EventDefinition
from ..entity_ids import entity_id_of, stored_entity_id
from ..free_events import FreeEvent, all_free_events
from ..models import Event, EventStatus, active_key
from ..subscribers import subscribers
from ..timing import next_wake, plan_of, possible_offsets_of, too_late
from ..zone_queries import stored_zone, with_zones
from .captured.performing import record_pending
from .recorder import record

logger = logging.getLogger("django_ai.automation")

ENTITIES_PER_TRANSACTION = 200
"""Entities that one transaction reads and reconciles."""
RESOLUTION = timedelta(microseconds=1)
"""The shortest time between two dates."""
KEYS_PER_QUERY = 10_000
"""Primary keys that one query returns."""
DATES_PER_QUERY = 50
"""Dates of a ``DateField`` that one query compares, each with its own midnight."""


def reconcile_dates(now: datetime) -> int:
    """Reconcile all rows of scheduled events near ``now`` with their entities, and return how many were written."""
    return reconcile_slice(TimeSlice(now)).done


def reconcile_slice(time_slice: TimeSlice) -> SliceResult:
    """Reconcile rows of scheduled events with their entities during one time slice.

    An error of one declaration does not stop the others: it is raised after them. A database failure is raised at
    once. The position of the slice: the declaration and the entity at which it stopped, and the earlier failure.
    """
    resume_from = time_slice.position or {}
    todo: dict[str, _Reconciliation] = {
        f"{declared.label}:{declared.definition.name}": partial(_reconcile_declaration, model, declared)
        for model in declaring_models()
        for declared in declared_on(model)
        if declared.owner is model and declared.definition.date_field
    }
    for event in all_free_events():
        if possible_offsets_of(event.name):
            todo[f"{event.label}:{event.name}"] = partial(_reconcile_free_event, event)
    names = list(todo)
    if resume_from.get("at") not in todo:  # the first slice, or the code has changed since
        resume_from = {}
    written, failed, failure_text = 0, None, resume_from.get("failed", "")
    for number in range(names.index(resume_from["at"]) if resume_from else 0, len(names)):
        after: list[str] | None = None
        try:
            count, after = todo[names[number]](time_slice, resume_from.get("after"))
            written += count
        except Exception as error:
            if is_database_failure(error, connections[alias_of(Event)]):
                raise
            label, _, name = names[number].partition(":")
            logger.exception("Reconciling %r of %s failed", name, label or "code that emits")
            failed, failure_text = failed or error, failure_text or trace_of(error)
        resume_from = {}
        following = names[number : number + 1] if after else names[number + 1 : number + 2]
        if time_slice.is_over and following:
            return SliceResult(written, {"at": following[0], "after": after, "failed": failure_text})
    if failed is not None:
        raise failed
    if failure_text:
        raise AutomationError(f"An event could not be reconciled:\n{failure_text}")
    return SliceResult(written)


_Reconciliation = Callable[[TimeSlice, list[str] | None], tuple[int, list[str] | None]]
"""Reconciles the rows of one declaration; returns how many it has written, and where the next slice continues."""


def _reconcile_free_event(
    event: FreeEvent, time_slice: TimeSlice, after: list[str] | None
) -> tuple[int, list[str] | None]:
    """Set the timers of rows without an entity for subscriptions that were added after they were emitted.

    Their dates do not change, so only rows are read that are due soon and whose timer was set for other subscribers.
    """
    now, written = time_slice.now, 0
    earliest, _ = bounds_of_offsets(event.name, now)
    last = later(now, conf().RECONCILE_HORIZON - earliest)
    live = [EventStatus.PENDING, EventStatus.PROCESSED]
    others = Event.objects.filter(
        entity_type=event.label, declared_as=event.name, status__in=live, wake_at__lte=last, lease=None, attempt=0
    ).exclude(planned_for=plan_of(event.name))
    reached = int(after[0]) if after else 0
    while True:
        pks = list(others.filter(pk__gt=reached).order_by("pk").values_list("pk", flat=True)[:ENTITIES_PER_TRANSACTION])
        if not pks:
            return written, None
        with transaction.atomic(using=alias_of(Event)):
            written += _set_timers(list(skipping_locked(others.filter(pk__in=pks))), event, now)
        reached = pks[-1]
        if time_slice.is_over:
            return written, [str(reached)]


Window = tuple[datetime, datetime]
"""A range of dates: from the first, to before the second."""


def _window(declared: Declared, now: datetime) -> Window:
    """Return the range of entity dates whose events may have a milestone until the next reconciliation."""
    earliest, latest = bounds_of_offsets(declared.definition.name, now)
    return now - declared.definition.grace - latest, now + conf().RECONCILE_HORIZON - earliest


def bounds_of_offsets(declared_as: str, now: datetime) -> tuple[timedelta, timedelta]:
    """Return how long before and after its date an event may have a milestone, whatever its date and time zone are."""
    found = [timedelta(0)]
    for offset in possible_offsets_of(declared_as):
        length, by = shift(now, offset) - now, variation(offset)
        found += [length - by, length + by]
    return min(found), max(found)


def windows_of_offsets(definition: EventDefinition, now: datetime) -> list[Window]:
    """Return the ranges of the dates whose offsets have passed within ``grace``, whatever their time zones are. They
    do not overlap. A workflow with an offset before the date starts until ``grace`` after the date."""
    found: list[Window] = []
    none = timedelta(0)
    for offset in possible_offsets_of(definition.name):
        length, by = shift(now, offset) - now, variation(offset)
        found.append((now - definition.grace - max(length + by, none), now - length + by + RESOLUTION))
    merged: list[Window] = []
    for first, last in sorted(found):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def _reconcile_declaration(
    model: type[models.Model], declared: Declared, time_slice: TimeSlice, after: list[str] | None
) -> tuple[int, list[str] | None]:
    """Return how many rows were written, and the date and key after which the next slice continues, if any."""
    rows = with_zones(model._base_manager.using(alias_of(model)), [declared.definition])
    written, now = 0, time_slice.now
    for page in differing_entities(model, declared, _window(declared, now), after):
        for start in range(0, len(page), ENTITIES_PER_TRANSACTION):
            part = page[start : start + ENTITIES_PER_TRANSACTION]
            with transaction.atomic(using=alias_of(Event)):
                pks = [pk for _, pk in part]
                if declared.definition.is_captured:
                    busy = record_pending(model, pks, now)
                    pks = [pk for pk in pks if pk not in busy]
                chunk = list(rows.filter(pk__in=pks).order_by("pk"))
                if chunk:
                    written += record(chunk, now, read_before=True, only=declared)
                    written += _update_timers(chunk, declared, now)
            if time_slice.is_over:
                moment, pk = part[-1]
                return written, [moment.isoformat(), entity_id_of(model, pk)]
    return written, None


def differing_entities(
    model: type[models.Model], declared: Declared, window: Window, after: list[str] | None = None
) -> Iterator[list[tuple[Any, Any]]]:
    """Yield pages of the dates and keys of entities that seem to differ from their event rows, ordered by both.

    ``window``: of the dates, at least. ``after``: the date and key to continue after.
    """
    name = str(declared.definition.date_field)
    field: Any = model._meta.get_field(name)
    zone = stored_zone(model, declared.definition)
    reached = after and (field.to_python(after[0]), model._meta.pk.to_python(after[1]))
    for first, last, at in _date_ranges(model, name, zone, *window):
        found = model._base_manager.using(alias_of(model))
        if isinstance(zone, Combinable):
            found = found.alias(automation_zone=zone)
        found = found.alias(automation_at=at)
        # Rows of another database cannot be compared with event rows; a check refuses such a model (E101).
        if (key := stored_entity_id(model)) is not None and alias_of(model) == alias_of(Event):
            wanted = OuterRef("automation_zone") if isinstance(zone, Combinable) else zone
            found = found.alias(automation_key=key).exclude(Exists(_consistent_rows(declared, wanted)))
        found = found.order_by(name, "pk").values_list(name, "pk")
        while reached is None or reached[0] <= last:
            rest = Q(**{f"{name}__range": (first, last)})
            if reached is not None:
                rest = Q(**{f"{name}__range": (max(first, reached[0]), last)})
                rest &= Q(**{f"{name}__gt": reached[0]}) | Q(**{name: reached[0]}, pk__gt=reached[1])
            page = list(islice(found.filter(rest)[:KEYS_PER_QUERY], KEYS_PER_QUERY))
            if not page:
                break
            yield page
            reached = page[-1]


def _date_ranges(
    model: type[models.Model], name: str, zone: str | Combinable | None, first: datetime, last: datetime
) -> Iterator[tuple[Any, Any, Combinable]]:
    """Yield ranges of the date column, each with the expression that the ``at`` of its event rows equals.

    ``zone``: what ``stored_zone`` returns; an expression is called ``automation_zone`` in the query.
    """
    field = model._meta.get_field(name)
    if isinstance(field, models.DateTimeField):
        yield first, last, F(name)
        return
    begin, end = first.date(), last.date() + timedelta(days=1)
    if zone is None:
        yield begin, end, Value(None, models.DateTimeField())  # equals nothing, so every row is compared
        return
    zones = [zone] if isinstance(zone, str) else _zones_between(model, name, zone, begin, end)
    if not zones:
        return
    number_of_days = max(DATES_PER_QUERY // len(zones), 1)
    while begin <= end:
        days = [
            day for number in range(number_of_days) if (day := _days_after(begin, number)) is not None and day <= end
        ]
        whens = [
            When(
                Q(**{name: day}) if isinstance(zone, str) else Q(**{name: day, "automation_zone__in": names}),
                then=Value(moment, models.DateTimeField()),
            )
            for day in days
            for moment, names in _midnights(day, zones, name).items()
        ]
        yield days[0], days[-1], Case(*whens, output_field=models.DateTimeField())
        following = _days_after(begin, number_of_days)
        if following is None:
            return
        begin = following


def _zones_between(model: type[models.Model], name: str, zone: Any, begin: date, end: date) -> list[str]:
    """Return the names of the time zones of entities whose dates are in a range."""
    rows = model._base_manager.using(alias_of(model)).filter(**{f"{name}__range": (begin, end)})
    return list(rows.order_by().values_list(zone, flat=True).distinct())


def _midnights(day: date, zones: Sequence[str], what: str) -> dict[datetime, list[str]]:
    """Return when ``day`` begins, with the names of the time zones in which it begins then."""
    found: dict[datetime, list[str]] = {}
    for zone in zones:
        found.setdefault(in_utc(aware(day, what, zone_or_default(zone))), []).append(zone)
    return found


def _days_after(day: date, number: int) -> date | None:
    try:
        return day + timedelta(days=number)
    except OverflowError:  # the end of the calendar
        return None


def _consistent_rows(declared: Declared, zone: Any) -> models.QuerySet[Event, Event]:
    """Return the event rows that need no comparison, for an entity of an outer query that has its key and date.

    ``zone``: the name of its time zone; None: only Python knows it, so a row is compared while it has a timer.
    """
    definition = declared.definition
    # A pending row is compared while its condition is false, and where its name is rendered from the entity's fields.
    has_current_timer = Q(wake_at=None)
    if zone is not None:
        has_current_timer |= Q(armed=True, timezone=zone)
    if definition.may_be_renamed:
        has_current_timer &= ~Q(status=EventStatus.PENDING)
    has_ended = Q(status__in=[EventStatus.EXPIRED, EventStatus.PARKED])
    return Event.objects.filter(
        Q(status=EventStatus.CANCELLED)
        | (
            Q(at=OuterRef("automation_at"))
            & (has_ended | (has_current_timer & Q(planned_for=plan_of(definition.name))))
        ),
        entity_id=OuterRef("automation_key"),
        entity_type=declared.label,
        declared_as=definition.name,
        active_key__isnull=False,
    )


def _update_timers(entities: Sequence[models.Model], declared: Declared, now: datetime) -> int:
    """Set the timers of rows for subscriptions that were added after they were recorded, and plan their runs."""
    keys = [active_key(declared.label, declared.entity_id_of(entity), declared.definition.name) for entity in entities]
    live = [EventStatus.PENDING, EventStatus.PROCESSED]
    # No waiting: rows that others have locked are left to the next reconciliation.
    rows = list(skipping_locked(Event.objects.filter(active_key__in=keys, status__in=live, lease=None, attempt=0)))
    return _set_timers(rows, declared.definition, now)


def _set_timers(rows: Sequence[Event], definition: EventDefinition, now: datetime) -> int:
    """Set the timers of ``rows``, which are locked, and plan their runs; return how many timers were moved."""
    plan, written = plan_of(definition.name), 0
    for row in rows:
        late = too_late(row, definition, now)
        changes: dict[str, Any] = {}
        if late and (row.wake_at is None or row.wake_at > now):
            # Nothing is overdue, so these offsets belong to new subscriptions: they are skipped.
            changes["fired"] = row.fired = [*row.fired, *late]
        wake_at = next_wake(row, definition, now)
        if wake_at is not None and (row.wake_at is None or wake_at < row.wake_at):
            changes["wake_at"] = wake_at
            written += 1
        if changes:
            Event.objects.filter(pk=row.pk).update(**changes)
    for subscriber in subscribers():
        subscriber.plan(rows, now, fresh=False)
    others = [row.pk for row in rows if row.planned_for != plan]
    if others:
        Event.objects.filter(pk__in=others).update(planned_for=plan)
    return written
