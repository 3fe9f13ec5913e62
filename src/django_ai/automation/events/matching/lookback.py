"""Looking back: which committed events does a match mean? For whoever begins to listen and must not miss what came
while it was not known yet.

The entities that match are found through their own table, and their events by entity; where too many match, the
database joins the two, or the events are gone through instead. Entities that were deleted since are compared by the
snapshots that their events carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from typing import Any

from django.db import connections
from django.db.models import Q, QuerySet

from ...db.writer import alias_of
from ..definitions import Declared, entity_id_of, stored_entity_id
from ..entities import load_entities
from ..models import Event
from .lookups import ask, satisfies
from .match import Address, entity_keys

FEW = 1000


def met(
    events: QuerySet[Event, Event],
    sources: Sequence[Declared],
    scope: str,
    values: Mapping[str, Any],
    where: Address,
) -> Iterator[Event]:
    """Yield those of ``events`` whose entity matches ``values``; ``where`` is their address in ``scope``."""
    for source in sources:
        yield from _met(events.filter(entity_type=source.label), source, scope, values, where)


def _met(
    events: QuerySet[Event, Event], source: Declared, scope: str, values: Mapping[str, Any], where: Address
) -> Iterator[Event]:
    entities = source.owner._base_manager.using(alias_of(source.owner))
    matching = ask(entities.db, lambda: list(entities.filter(**values).values_list("pk", flat=True)[: FEW + 1]))
    pks = [entity_id_of(source.owner, pk) for pk in matching or ()]
    are_few = len(pks) <= FEW
    if are_few:
        events = events.filter(Q(entity_id__in=pks) | Q(snapshot__isnull=False))
    # MariaDB takes "bob" for "Bob"; keys don't.
    is_exact = connections[entities.db].vendor != "mysql"
    for event in _with_entities(events):
        if event.snapshot_id is None and are_few and is_exact:
            yield event
            continue
        theirs = entity_keys(scope, event.entity, [where.shape])
        if not set(where.keys).isdisjoint(theirs) and event.entity and satisfies(event.entity, where.residual):
            yield event


def occurred_of(
    events: QuerySet[Event, Event],
    sources: Sequence[Declared],
    scope: str,
    values: Mapping[str, Any],
    where: Address,
) -> Iterator[Event]:
    """Yield those of ``events`` that have occurred and whose entity matches ``values``, in the order in which they
    came. They are found by entity, through an index, where few entities match, and joined by the database where many
    do."""
    return merge(*(_occurred_of(events, each, scope, values, where) for each in sources), key=_position)


def _occurred_of(
    events: QuerySet[Event, Event], source: Declared, scope: str, values: Mapping[str, Any], where: Address
) -> Iterator[Event]:
    entities = source.owner._base_manager.using(alias_of(source.owner))
    matching = ask(entities.db, lambda: list(entities.filter(**values).values_list("pk", flat=True)[: FEW + 1]))
    pks = [entity_id_of(source.owner, pk) for pk in matching or ()]
    theirs = events.filter(entity_type=source.label)

    def fits(event: Event) -> bool:
        keys = entity_keys(scope, event.entity, [where.shape])
        return not set(where.keys).isdisjoint(keys) and bool(event.entity) and satisfies(event.entity, where.residual)

    ids: Any = pks
    if len(pks) > FEW:
        key = stored_entity_id(source.owner)
        if key is None:
            return filter(fits, _as_they_came(theirs))
        ids = entities.filter(**values).annotate(automation_key=key).values("automation_key")
    living: Iterator[Event] = (
        _as_they_came(theirs.filter(entity_id__in=ids, snapshot__isnull=True)) if pks else iter(())
    )
    if connections[entities.db].vendor == "mysql":  # it takes "bob" for "Bob"; keys don't
        living = filter(fits, living)
    return merge(living, filter(fits, _as_they_came(theirs.filter(snapshot__isnull=False))), key=_position)


def _as_they_came(events: QuerySet[Event, Event]) -> Iterator[Event]:
    rest = events.order_by("position")
    while chunk := list(rest[:FEW]):
        load_entities(chunk)
        yield from chunk
        rest = events.filter(position__gt=chunk[-1].position).order_by("position")


def _position(event: Event) -> int:
    return event.position or 0


def _with_entities(events: QuerySet[Event, Event]) -> Iterator[Event]:
    """Yield the events with their entities read, many at a time: first those still to occur, then the others as they
    occurred. In this order, because one that occurs meanwhile must be among one or the other; it is yielded once.

    No cursor stays open on the server, which a pooler may not allow.
    """
    seen: set[int] = set()
    for still_to_occur in (True, False):
        part = events.filter(occurred_at__isnull=still_to_occur).order_by("occurred_at", "pk")
        rest = part
        while chunk := list(rest[:FEW]):
            last = chunk[-1]
            chunk = [event for event in chunk if event.pk not in seen]
            load_entities(chunk)
            yield from chunk
            after = Q(pk__gt=last.pk)
            if still_to_occur:
                seen.update(event.pk for event in chunk)
            else:
                after = Q(occurred_at__gt=last.occurred_at) | Q(occurred_at=last.occurred_at) & after
            rest = part.filter(after)
