"""Look back: which committed events does a match select? For runs that start to wait and must not miss earlier events.

The matching entities are found through their own table, and their events by entity; where too many entities match, the
database joins the two, or the events are read in turn instead. Deleted entities are compared by their snapshots. Events
without an entity are read in turn; the database leaves out most payloads that do not match (``payload_filter``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import merge
from typing import Any

from django.db import connections
from django.db.models import Q, QuerySet

from ...db.writer import alias_of
from ..declarations import Declared
from ..entities import load_entities
from ..entity_ids import entity_id_of, stored_entity_id
from ..free_events import FreeEvent
from ..models import Event
from ..sources import Source
from .lookups import event_satisfies, query_or_none
from .match import Address, event_keys
from .payload_filter import payload_filter

ROWS_PER_QUERY = 1000
"""Events that one query reads, and the most entities whose events are looked up by primary key."""


def events_matching(
    events: QuerySet[Event, Event],
    sources: Sequence[Source],
    scope: str,
    values: Mapping[str, Any],
    where: Address,
) -> Iterator[Event]:
    """Yield those of ``events`` whose entity or payload matches ``values``; ``where`` is their address in ``scope``."""
    for source in sources:
        if not isinstance(source, FreeEvent):
            yield from _events_matching(events.filter(entity_type=source.label), source, scope, values, where)
    if free := [source for source in sources if isinstance(source, FreeEvent)]:
        yield from filter(_fits(scope, where), _with_entities(_free_events(events, free, values)))


def _fits(scope: str, where: Address) -> Callable[[Event], bool]:
    """Return a function that compares an event with an address."""

    def fits(event: Event) -> bool:
        theirs = event_keys(scope, event, [where.shape])
        return not set(where.keys).isdisjoint(theirs) and event_satisfies(event, where.residual)

    return fits


def _free_events(
    events: QuerySet[Event, Event], sources: Sequence[FreeEvent], values: Mapping[str, Any]
) -> QuerySet[Event, Event]:
    """Return those of ``events`` that have no entity and whose payload may match ``values``."""
    return events.filter(payload_filter(sources, values), entity_type=FreeEvent.label)


def _events_matching(
    events: QuerySet[Event, Event], source: Declared, scope: str, values: Mapping[str, Any], where: Address
) -> Iterator[Event]:
    entities = source.owner._base_manager.using(alias_of(source.owner))
    matching = query_or_none(
        entities.db, lambda: list(entities.filter(**values).values_list("pk", flat=True)[: ROWS_PER_QUERY + 1])
    )
    pks = [entity_id_of(source.owner, pk) for pk in matching or ()]
    are_few = len(pks) <= ROWS_PER_QUERY
    if are_few:
        events = events.filter(Q(entity_id__in=pks) | Q(snapshot__isnull=False))
    # MariaDB compares "bob" and "Bob" as equal, routing keys do not.
    is_exact = connections[entities.db].vendor != "mysql"
    fits = _fits(scope, where)
    for event in _with_entities(events):
        if (event.snapshot_id is None and are_few and is_exact) or fits(event):
            yield event


def occurred_matching(
    events: QuerySet[Event, Event],
    sources: Sequence[Source],
    scope: str,
    values: Mapping[str, Any],
    where: Address,
) -> Iterator[Event]:
    """Yield those of ``events`` that have occurred and whose entity or payload matches ``values``, by their position.

    Where few entities match, their events are found by entity through an index; otherwise the database joins both.
    """
    found = [
        _occurred_matching(events, each, scope, values, where) for each in sources if not isinstance(each, FreeEvent)
    ]
    if free := [source for source in sources if isinstance(source, FreeEvent)]:
        found.append(filter(_fits(scope, where), _in_order_of_position(_free_events(events, free, values))))
    return merge(*found, key=_position)


def _occurred_matching(
    events: QuerySet[Event, Event], source: Declared, scope: str, values: Mapping[str, Any], where: Address
) -> Iterator[Event]:
    entities = source.owner._base_manager.using(alias_of(source.owner))
    matching = query_or_none(
        entities.db, lambda: list(entities.filter(**values).values_list("pk", flat=True)[: ROWS_PER_QUERY + 1])
    )
    pks = [entity_id_of(source.owner, pk) for pk in matching or ()]
    theirs, fits = events.filter(entity_type=source.label), _fits(scope, where)
    ids: Any = pks
    if len(pks) > ROWS_PER_QUERY:
        key = stored_entity_id(source.owner)
        if key is None:
            return filter(fits, _in_order_of_position(theirs))
        ids = entities.filter(**values).annotate(automation_key=key).values("automation_key")
    living: Iterator[Event] = (
        _in_order_of_position(theirs.filter(entity_id__in=ids, snapshot__isnull=True)) if pks else iter(())
    )
    if connections[entities.db].vendor == "mysql":  # compares "bob" and "Bob" as equal, routing keys do not
        living = filter(fits, living)
    return merge(living, filter(fits, _in_order_of_position(theirs.filter(snapshot__isnull=False))), key=_position)


def _in_order_of_position(events: QuerySet[Event, Event]) -> Iterator[Event]:
    rest = events.order_by("position")
    while chunk := list(rest[:ROWS_PER_QUERY]):
        load_entities(chunk)
        yield from chunk
        rest = events.filter(position__gt=chunk[-1].position).order_by("position")


def _position(event: Event) -> int:
    return event.position or 0


def _with_entities(events: QuerySet[Event, Event]) -> Iterator[Event]:
    """Yield the events with their entities loaded, many at a time: pending events first, then the others by time.

    In this order an event that occurs meanwhile is in one part or the other; it is yielded once. No server-side cursor
    stays open, because a connection pooler may not allow it.
    """
    yielded: set[int] = set()
    for is_pending in (True, False):
        part = events.filter(occurred_at__isnull=is_pending).order_by("occurred_at", "pk")
        rest = part
        while chunk := list(rest[:ROWS_PER_QUERY]):
            last = chunk[-1]
            chunk = [event for event in chunk if event.pk not in yielded]
            load_entities(chunk)
            yield from chunk
            after = Q(pk__gt=last.pk)
            if is_pending:
                yielded.update(event.pk for event in chunk)
            else:
                after = Q(occurred_at__gt=last.occurred_at) | Q(occurred_at=last.occurred_at) & after
            rest = part.filter(after)
