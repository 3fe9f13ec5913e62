"""Sources: whatever may declare the events that a subscriber gets, a model (``Declared``) or a ``FreeEvent``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from django.db import models

from .declarations import Declared, declared_events, sources_of
from .free_events import FreeEvent, all_free_events, free_events_matching
from .names import pattern_of

Source: TypeAlias = Declared | FreeEvent

Owner: TypeAlias = type[models.Model] | FreeEvent
"""What gives the types of the values that a match compares: a model, or the payload of a free event."""


def event_sources(pattern: str) -> Sequence[Source]:
    """Return the declarations whose events a subscriber to ``pattern`` may get."""
    free = free_events_matching(pattern)
    return [*sources_of(pattern), *free] if free else sources_of(pattern)


def owners_of(sources: Iterable[Source]) -> list[Owner]:
    return [each if isinstance(each, FreeEvent) else each.owner for each in sources]


def declared_name(source: Source) -> str:
    return source.name if isinstance(source, FreeEvent) else source.definition.name


def declared_names() -> set[str]:
    """Return the names of all declared events."""
    return {*declared_events(), *(each.name for each in all_free_events())}


def stored_names(event_name: str) -> set[str]:
    """Return the names under which the routing shapes of a subscriber to ``event_name`` are stored."""
    return {pattern_of(declared_name(source)) for source in event_sources(event_name)} or {event_name}


def labels_of(sources: Iterable[Source]) -> str:
    """Return what declares the events, for a message: the labels of models, and free events."""
    found = {each.name if isinstance(each, FreeEvent) else each.owner._meta.label for each in sources}
    return ", ".join(sorted(found))
