"""Looking back: which committed events does a match mean? For whoever begins to listen and must not miss what came
while it was not known yet.

The entities that match are found through their own table, and their events by entity; where too many match, the events
are gone through instead. Entities that were deleted since are compared by the snapshots that their events carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.core.exceptions import FieldError, ValidationError
from django.db.models import Q, QuerySet

from ..queues.lease import alias_of
from .definitions import Declared
from .matching import Address, entity_keys, satisfies
from .models import Event

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
    try:
        pks = [str(pk) for pk in entities.filter(**values).values_list("pk", flat=True)[: FEW + 1]]
    except FieldError:
        return  # another model's event of the same name, without that field
    except (ValueError, TypeError, ValidationError):
        pks = []  # a value that the field cannot have: no entity has it
    if len(pks) <= FEW:
        events = events.filter(Q(entity_id__in=pks) | Q(snapshot__isnull=False))
    for event in events.iterator(chunk_size=FEW):
        if event.snapshot is None and len(pks) <= FEW:
            yield event
            continue
        theirs = entity_keys(scope, event.entity, [where.shape])
        if not set(where.keys).isdisjoint(theirs) and event.entity and satisfies(event.entity, where.residual):
            yield event
