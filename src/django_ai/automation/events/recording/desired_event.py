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
from ..declarations import Declared, declared_on
from ..definitions import EventDefinition, EventTrigger
from ..failed_evaluation import FailedEvaluation
from ..matching.typed_values import canonical
from ..models import Event, active_key
from .entity_state import first_recorded_at
from .stored_values import may_differ

NOT_WRITTEN = object()
"""The value of a date or of watched fields that a save does not write."""

NOT_RETRIED = " at a deletion and is not retried: the entity no longer exists."


@dataclass(slots=True)
class DesiredEvent:
    """What an entity declares about one of its events now.

    ``at`` and ``watched`` are ``NOT_WRITTEN`` if the save did not write the date or the watched fields. ``write`` is
    the kind of this write if it is a trigger of the definition; ``armed`` is then the condition at this write.
    ``error`` and ``failed_evaluation``: what a function of the project raised; ``is_retryable``: a retry may succeed.
    ``held_before``: the condition already held before the first save that the definition sees.
    """

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
    held_before: bool = False

    @property
    def definition(self) -> EventDefinition:
        return self.declared.definition

    @property
    def key(self) -> str:
        return active_key(self.declared.label, self.entity_id, self.declared.definition.name)


def mark_existing(unseen: Sequence[DesiredEvent], before: models.Model | None, now: datetime, *, saved: bool) -> None:
    """Set ``held_before`` of events that are recorded for the first time, where existing rows do not fire."""
    for desired in unseen:
        definition = desired.definition
        if not (desired.armed or desired.error) or definition.triggers or definition.existing == "fire":
            continue
        if definition.is_scheduled and (desired.at is NOT_WRITTEN or desired.at is None or desired.at > now):
            continue
        if desired.error:
            desired.is_retryable = False  # a later evaluation could not find out whether it held before
            continue
        if saved:
            desired.held_before = before is not None and _held_before(desired, before, now)
        elif desired.at < later(now, -conf().RECONCILE_HORIZON):
            since = first_recorded_at(desired.declared)
            desired.held_before = since is None or desired.at < since


def _held_before(desired: DesiredEvent, before: models.Model, now: datetime) -> bool:
    definition, was = desired.definition, replace(desired, armed=False, error="")
    if definition.date_field is not None:
        at = _date_of(before, definition.date_field)
        if at is None or at > now:
            return False
    evaluate_definition(was, before, raw=False)
    return was.armed


def desired_events(
    entity: models.Model, raw: bool, update_fields: Any, write: EventTrigger | None, only: Declared | None = None
) -> Iterator[DesiredEvent]:
    """Yield what ``entity`` declares about each of its events, or about ``only`` one, at a save.

    ``raw``: a fixture is loaded. ``update_fields``: those of the save. ``write``: which kind of write the save is.
    """
    deferred = entity.get_deferred_fields()
    entity = _as_stored(entity)
    for declared in declared_on(type(entity)) if only is None else (only,):
        if raw and declared.owner._meta.concrete_model is not entity._meta.concrete_model:
            continue  # a fixture has a separate row for the parent, and this instance lacks its columns
        definition = declared.definition
        counts = write in definition.triggers and not raw
        if definition.triggers and not counts and not (definition.watch_fields and write):
            continue
        desired = DesiredEvent(
            declared, declared.entity_id_of(entity), definition.name, "", None, "", False, write if counts else None
        )
        name = definition.date_field
        if name is not None:
            untouched = (update_fields is not None and name not in update_fields) or name in deferred
            desired.at = NOT_WRITTEN if untouched else _date_of(entity, name)
        if definition.watch_fields:
            untouched = update_fields is not None and not _columns(entity, definition.watch_fields) & _columns(
                entity, update_fields
            )
            desired.watched = NOT_WRITTEN if untouched else watched_values(entity, definition)
        evaluate_definition(desired, entity, raw)
        yield desired


def evaluate_definition(desired: DesiredEvent, entity: models.Model, raw: bool) -> None:
    """Call the functions of the definition. An error is recorded with the event and never fails the save."""
    definition = desired.definition
    started = time.monotonic()
    with own_failures(connections[alias_of(Event)]) as is_ours:
        try:
            with savepoint_on_query(entity):
                desired.name = definition.name_for(entity)
                desired.namespace = definition.namespace_of(entity)
                if desired.write or not definition.triggers:
                    desired.armed = definition.holds_for(entity)
        except Exception as raised:
            if is_ours(raised):
                raise  # a deadlock or a lost connection: the transaction of the save is over anyway
            # A fixture may load the rows that a condition reads later: the first real save evaluates it.
            desired.armed = False
            is_last = desired.write == EventTrigger.DELETE
            what = f"A function of {definition!r} raised{NOT_RETRIED if is_last else ':'}"
            desired.error = "" if raw else storable(f"{what}\n{traceback.format_exc()}")
            desired.failed_evaluation = None if raw else FailedEvaluation(raised, time.monotonic() - started)
            desired.is_retryable = not isinstance(raised, AutomationError) and not is_last


def _columns(entity: models.Model, names: Iterable[str]) -> set[str]:
    """Return the field names of ``names``: a relation may be given by its name or by its column."""
    return {entity._meta.get_field(name).name for name in names}


def watched_values(entity: models.Model, definition: EventDefinition) -> str:
    """Return a digest of the fields that the definition watches, as the database stores them."""
    values = []
    for name in definition.watch_fields:
        field: Any = entity._meta.get_field(name)
        value = getattr(entity, field.attname)
        if value is not None:
            value = (field.target_field if field.is_relation else field).to_python(value)
        if isinstance(field, models.DecimalField) and value is not None:
            value = round(value, field.decimal_places)
        if isinstance(field, models.JSONField):
            as_json = json.loads(json.dumps(value, cls=field.encoder))
            value = json.dumps(as_json, sort_keys=True)
        values.append(canonical(value))
    return digest("watched", *values)


def _as_stored(entity: models.Model) -> models.Model:
    """Return the entity as the database stores it, read again if the instance may differ from its row."""
    return (read_from_table(entity) or entity) if may_differ(entity) else entity


def read_from_table(entity: models.Model, *, lock: bool = False) -> models.Model | None:
    rows = type(entity)._base_manager.using(alias_of(Event))
    if lock and _supports_lock_of(rows.db):
        rows = rows.select_for_update(of=("self",))
    return rows.filter(pk=entity.pk).first()


def _supports_lock_of(alias: str) -> bool:
    """Return whether ``SELECT ... FOR UPDATE OF`` works; SQLite has a single writer and needs no row locks."""
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
def savepoint_on_query(entity: models.Model) -> Iterator[None]:
    """Open a savepoint before the first query inside the block.

    So a database error in a function of the project does not break the transaction of the save. A function that does
    not query costs nothing.
    """
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
