"""Compare a match with an event lookup by lookup, to explain why it holds or not: with the keys and the residual
comparison by which events are routed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connections

from ...db.errors import is_database_failure
from ...db.writer import alias_of
from ..models import Event
from ..sources import Source
from .lookups import event_satisfies, read_lookup
from .match import address, event_keys
from .payload_fields import read_field, split_lookup

UNREADABLE = object()
"""The value of a lookup that cannot be read from the entity or the payload."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One lookup of a match: the value that it asks for, the value of the entity (or of the payload), and whether they
    match."""

    name: str
    expected: Any
    actual: Any
    holds: bool


def compare_fields(values: Mapping[str, Any], event: Event, sources: Sequence[Source]) -> Iterator[Compared]:
    """Yield each lookup of ``values``, which has the values of a Context already."""
    for name, expected in values.items():
        where = address("compare", {name: expected}, sources, spread=True)
        keys = event_keys("compare", event, [where.shape])
        holds = not set(where.keys).isdisjoint(keys) and event_satisfies(event, where.residual)
        yield Compared(name, expected, _actual(event, name), holds)


def _actual(event: Event, name: str) -> Any:
    """Return the value that a lookup is compared with. A lookup that only the database can read has none."""
    try:
        if event.is_free:
            return read_field(event.payload or {}, split_lookup(name)[0])
        entity = event.entity
        if entity is None:
            return UNREADABLE
        try:
            return read_lookup(entity, name)
        except AttributeError:
            return read_lookup(entity, name.rpartition("__")[0])
    except Exception as error:  # no such field, or a descriptor of the project that raises
        if is_database_failure(error, connections[alias_of(Event)]):
            raise
        return UNREADABLE
