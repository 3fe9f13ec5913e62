"""``DesiredEvent``: what an entity declares now about each of its events.

``desired_events`` calls the functions of the definitions: name, namespace, condition. What they raise is recorded with
the event and never fails the save.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.db import connections, models, transaction

from ...conf import conf
from ...db.errors import own_failures
from ...db.writer import alias_of
from ...exceptions import AutomationError
from ...values.clock import aware, later
from ...values.digests import digest
from ...values.json_text import storable
from ..definitions import Declared, EventDefinition, EventTrigger, declared_on
from ..failed_evaluation import FailedEvaluation
from ..matching.typed_values import canonical
from ..models import Event, active_key
from .entity_state import known_since
from .stored_values import may_differ

UNKNOWN = object()


FOR_GOOD = " at a deletion, and cannot be asked again: the row is gone."


@dataclass(slots=True)
class DesiredEvent:
    """What an entity says about one of its events now. ``at`` and ``watched`` are UNKNOWN where the save did not touch
    the date or the watched fields. ``write``: which kind of write this is, if the definition counts writes of its kind;
    ``armed`` then says whether the condition held at it. ``error``, ``failed_evaluation``: what a function of the
    project raised, and ``is_retryable``: whether it may yet succeed. ``already``: the condition held before the
    save that first shows the entity to this definition."""

    declared: Declared
    entity_id: str
    name: str
    namespace: str
    at: Any
    watched: Any
    armed: bool
    write: EventTrigger | None = None
    error: str = ""
    is_retryable: bool = False
    failed_evaluation: FailedEvaluation | None = None
    already: bool = False

    @property
    def definition(self) -> EventDefinition:
        return self.declared.definition

    @property
    def key(self) -> str:
        return active_key(self.declared.label, self.entity_id, self.declared.definition.name)


def mark_existing(unseen: Sequence[DesiredEvent], before: models.Model | None, now: datetime, *, saved: bool) -> None:
    """Say of what is seen for the first time whether it held before."""
    for wanted in unseen:
        definition = wanted.definition
        if not (wanted.armed or wanted.error) or definition.triggers or definition.existing == "fire":
            continue
        if definition.is_scheduled and (wanted.at is UNKNOWN or wanted.at is None or wanted.at > now):
            continue
        if wanted.error:
            wanted.is_retryable = False  # asked later, nobody could tell whether it held before
            continue
        if saved:
            wanted.already = before is not None and _held_before(wanted, before, now)
        elif wanted.at < later(now, -conf().RECONCILE_HORIZON):
            since = known_since(wanted.declared)
            wanted.already = since is None or wanted.at < since


def _held_before(wanted: DesiredEvent, before: models.Model, now: datetime) -> bool:
    definition, was = wanted.definition, replace(wanted, armed=False, error="")
    if definition.date_field is not None:
        at = _date_of(before, definition.date_field)
        if at is None or at > now:
            return False
    ask(was, before, raw=False)
    return was.armed


def desired_events(
    entity: models.Model, raw: bool, update_fields: Any, write: EventTrigger | None, only: Declared | None = None
) -> Iterator[DesiredEvent]:
    deferred = entity.get_deferred_fields()
    entity = _as_saved(entity)
    for declared in declared_on(type(entity)) if only is None else (only,):
        if raw and declared.owner._meta.concrete_model is not entity._meta.concrete_model:
            continue  # a fixture holds the parent's row by itself, and this instance none of its columns
        definition = declared.definition
        counts = write in definition.triggers and not raw
        if definition.triggers and not counts and not (definition.watch_fields and write):
            continue
        wanted = DesiredEvent(
            declared, declared.entity_id_of(entity), definition.name, "", None, "", False, write if counts else None
        )
        name = definition.date_field
        if name is not None:
            untouched = (update_fields is not None and name not in update_fields) or name in deferred
            wanted.at = UNKNOWN if untouched else _date_of(entity, name)
        if definition.watch_fields:
            untouched = update_fields is not None and not _columns(entity, definition.watch_fields) & _columns(
                entity, update_fields
            )
            wanted.watched = UNKNOWN if untouched else watched_values(entity, definition)
        ask(wanted, entity, raw)
        yield wanted


def ask(wanted: DesiredEvent, entity: models.Model, raw: bool) -> None:
    """Ask the functions of the definition. What they raise is the event's failed_evaluation and never the save's."""
    definition = wanted.definition
    started = time.monotonic()
    with own_failures(connections[alias_of(Event)]) as is_ours:
        try:
            with condition_of(entity):
                wanted.name = definition.name_for(entity)
                wanted.namespace = definition.namespace_of(entity)
                if wanted.write or not definition.triggers:
                    wanted.armed = definition.holds_for(entity)
        except Exception as raised:
            if is_ours(raised):
                raise  # a deadlock or a lost connection: the user's transaction is over anyway
            # In a fixture the rows that a condition reads may come later: its verdict waits for the first real save.
            wanted.armed = False
            is_last = wanted.write == EventTrigger.DELETE
            what = f"A function of {definition!r} raised{FOR_GOOD if is_last else ':'}"
            wanted.error = "" if raw else storable(f"{what}\n{traceback.format_exc()}")
            wanted.failed_evaluation = None if raw else FailedEvaluation(raised, time.monotonic() - started)
            wanted.is_retryable = not isinstance(raised, AutomationError) and not is_last


def _columns(entity: models.Model, names: Iterable[str]) -> set[str]:
    """Return which columns ``names`` mean: a relation may be named by itself or by its key."""
    return {entity._meta.get_field(name).name for name in names}


def watched_values(entity: models.Model, definition: EventDefinition) -> str:
    """Return a digest of the fields that the definition watches, as the database keeps them."""
    values = []
    for name in definition.watch_fields:
        field: Any = entity._meta.get_field(name)
        value = getattr(entity, field.attname)
        if value is not None:
            value = (field.target_field if field.is_relation else field).to_python(value)
        if isinstance(field, models.DecimalField) and value is not None:
            value = round(value, field.decimal_places)
        if isinstance(field, models.JSONField):
            plainly = json.loads(json.dumps(value, cls=field.encoder))
            value = json.dumps(plainly, sort_keys=True)
        values.append(canonical(value))
    return digest("watched", *values)


def _as_saved(entity: models.Model) -> models.Model:
    """Return the entity as the database holds it, read again where it may hold something else."""
    return (read_from_table(entity) or entity) if may_differ(entity) else entity


def read_from_table(entity: models.Model, *, lock: bool = False) -> models.Model | None:
    rows = type(entity)._base_manager.using(alias_of(Event))
    return (
        (rows.select_for_update(of=("self",)) if lock and _locks_parts(rows.db) else rows).filter(pk=entity.pk).first()
    )


def _locks_parts(alias: str) -> bool:
    """Say whether ``SELECT ... FOR UPDATE OF`` works; SQLite has one writer, and needs no row locks."""
    return connections[alias].features.has_select_for_update_of


def _date_of(entity: models.Model, name: str) -> datetime | None:
    field = entity._meta.get_field(name)
    value = getattr(entity, name)
    if value is None:
        return None
    what = f"{entity._meta.label}.{name} of {entity.pk}"
    if isinstance(value, str):
        value = field.to_python(value)  # type: ignore[union-attr]
    return aware(value, what)


@contextmanager
def condition_of(entity: models.Model) -> Iterator[None]:
    """Let a function of the project query without harm: its first query opens a savepoint, so that an error of the
    database in it does not spoil the user's transaction. One that does not query costs nothing."""
    connection = connections[alias_of(Event)]
    atomic = transaction.atomic(using=connection.alias)
    entered = False

    def guard(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        nonlocal entered
        if not entered:
            entered = True
            atomic.__enter__()
        return execute(sql, params, many, context)

    with connection.execute_wrapper(guard):
        try:
            yield
        except BaseException as error:
            if entered:
                atomic.__exit__(type(error), error, error.__traceback__)
            raise
        else:
            if entered:
                atomic.__exit__(None, None, None)
