"""What a save of an entity would do to its events: the rows as they are, and as the save would write them.

The functions of the definitions are called with the values that are not saved yet, as a save does. Nothing is written.
An entity that has no row yet gets a primary key that no row has, so that a function that follows a relation to it finds
what the first save would find: nothing.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import models

from ...db.writer import from_writer
from ..changes import Values, values_of
from ..declarations import Declared
from ..definitions import EventDefinition, EventTrigger
from ..models import Event, EventStatus
from .desired_event import DesiredEvent, desired_events, mark_existing, read_from_table
from .event_row import apply_desired, differs, needs_row, new_row, occurs_again
from .origin import Origin

PROVISIONAL_KEY = -1
"""The primary key of an entity that is not saved yet. Sequences begin at 1."""


@dataclass(frozen=True, slots=True)
class PreviewedEvent:
    """One event that a save would write.

    ``before``: its row now; None: it has none. ``after``: the row as the save would write it. ``is_another``: the event
    occurs again, in a row of its own, and what is left of ``before`` is dropped. ``error``: what a function of the
    definition raised.
    """

    definition: EventDefinition
    before: Event | None
    after: Event
    is_another: bool
    error: str
    now: datetime

    @property
    def fires(self) -> bool:
        """Whether the event occurs right after the commit of the save, and would not without it."""
        was_due = self.before is not None and not self.is_another and _is_due(self.before, self.now)
        return _is_due(self.after, self.now) and not was_due


def _is_due(event: Event, now: datetime) -> bool:
    is_over = event.status != EventStatus.PENDING or not event.armed or bool(event.attempt)
    return not is_over and event.at is not None and event.at <= now


@from_writer()
def preview_save(entity: models.Model, now: datetime) -> list[PreviewedEvent]:
    """Return what a save of ``entity`` would do to its events: of a stored row with changed values, or of a new one."""
    found, is_new = as_if_stored(entity), entity._state.adding
    stored = None if is_new else read_from_table(found)
    if stored is None and not is_new:
        return []

    def values_before(declared: Declared) -> Values | None:
        return None if stored is None else values_of(stored, declared.definition.compared_fields)

    origin = Origin(None, now, values_before)
    write = EventTrigger.CREATE if is_new else EventTrigger.UPDATE
    desired = list(desired_events(found, False, None, write, None, origin))
    rows = Event.objects.filter(active_key__in=[each.key for each in desired])
    known = {row.active_key: row for row in rows}
    unseen = [each for each in desired if each.key not in known]
    mark_existing(unseen, stored, now, saved=True)
    return list(_previewed(desired, known, found, stored, now))


def as_if_stored(entity: models.Model) -> models.Model:
    """Return a copy that is not read again from the table, which has the old values or none.

    Times that a save sets (``auto_now``) are set. A new entity gets a primary key that no row has, and the defaults of
    the database that are plain values; other defaults of the database are None.
    """
    found, is_new = copy.copy(entity), entity._state.adding
    found._state = copy.copy(entity._state)
    found._state.automation_is_stored = True  # type: ignore[attr-defined]
    for field in found._meta.concrete_fields:
        value = found.__dict__.get(field.attname)
        if hasattr(value, "resolve_expression"):
            setattr(found, field.attname, getattr(getattr(value, "expression", None), "value", None))
        if getattr(field, "auto_now", False) or (is_new and getattr(field, "auto_now_add", False)):
            field.pre_save(found, is_new)
    if found.pk is None:
        found.pk = key = _provisional_key(found._meta.pk)
        for parent in found._meta.get_parent_list():
            setattr(found, str(parent._meta.pk.attname), key)
    return found


def _provisional_key(field: Any) -> Any:
    """Return a value of a primary key that no row has; None: its type has none."""
    while field.is_relation:
        field = field.target_field
    if isinstance(field, models.UUIDField):
        return uuid.uuid4()
    return PROVISIONAL_KEY if isinstance(field, models.IntegerField) else None


def _previewed(
    desired: Sequence[DesiredEvent],
    known: dict[str | None, Event],
    entity: models.Model,
    stored: models.Model | None,
    now: datetime,
) -> Iterator[PreviewedEvent]:
    for each in desired:
        before, definition = known.get(each.key), each.definition
        if before is None:
            if not needs_row(each):
                continue
            after, is_another = new_row(each, now, False), False
        elif not differs(before, each):
            continue
        else:
            is_another = occurs_again(before, each, now)
            if is_another:
                after = new_row(each, now, False, replaces=True)
            else:
                after = copy.copy(before)
                apply_desired(after, each, now)
            if stored is not None:
                before.entity = stored
        after.entity = entity
        yield PreviewedEvent(definition, before, after, is_another, each.error, now)
