"""``DesiredEvent``: what an entity declares now about each of its events.

``desired_events`` calls the functions of the definitions: name, namespace, condition. What they raise is recorded with
the event and never fails the save.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db import connections, models

from ...conf import conf
from ...db.errors import own_failures
from ...db.savepoints import savepoint_on_query
from ...db.writer import alias_of
from ...exceptions import AutomationError
from ...values.clock import aware, in_utc, later
from ...values.digests import digest
from ...values.json_text import storable
from ...values.zones import zone_or_default
from ..changes import Change, Stored, Values, values_of
from ..declarations import Declared, declared_on
from ..definitions import EventDefinition, EventTrigger
from ..failed_evaluation import FailedEvaluation
from ..matching.typed_values import canonical
from ..models import Event, active_key
from .entity_state import first_recorded_at
from .origin import Origin
from .stored_values import may_differ
from .values_before import UNKNOWN, ValuesBefore, values_before

NOT_WRITTEN = object()
"""The value of a date or of watched fields that a save does not write."""

NOT_RETRIED = " at a deletion and is not retried: the entity no longer exists."


@dataclass(slots=True)
class DesiredEvent:
    """What an entity declares about one of its events now.

    ``at`` and ``watched`` are ``NOT_WRITTEN`` if the save did not write the date or the watched fields. ``write`` is
    the kind of this write if it is a trigger of the definition; ``armed`` is then the condition at this write.
    ``timezone``: the name of the time zone of the entity; empty: ``TIME_ZONE``, or an error.
    ``error`` and ``failed_evaluation``: what a function of the project raised; ``is_retryable``: a retry may succeed.
    ``held_before``: the condition already held before the first save that the definition sees. ``change``: the values
    that the event compares, before the transaction and now; None: it compares none, or the save wrote none of them.
    ``is_partial``: a save of ``update_fields`` may be a transition, and the row in the table decides. ``origin``: the
    write was captured; None: it is a save. ``key``: the ``active_key`` of its row.
    """

    declared: Declared
    entity_id: str
    name: str
    namespace: str
    at: Any
    watched: Any
    armed: bool
    write: EventTrigger | None = None
    timezone: str = ""
    error: str = ""
    is_retryable: bool = False
    failed_evaluation: FailedEvaluation | None = None
    held_before: bool = False
    change: Change | None = None
    is_partial: bool = False
    origin: Origin | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = active_key(self.declared.label, self.entity_id, self.declared.definition.name)

    @property
    def is_transition(self) -> bool:
        """Whether the write is one that ``was=`` and ``becomes=`` ask for; any write, without them. Raises whatever a
        function of the definition raises."""
        transition = self.definition.transition
        if transition is None:
            return True
        change = self.change
        return change is not None and transition.holds(self.declared.owner, change.before, change.after)

    @property
    def changed_values(self) -> Stored | None:
        """What the row of the event keeps of ``change``: all that a transition compares, to evaluate it again after an
        error; of other fields those that have changed."""
        definition, change = self.definition, self.change
        if change is None:
            return None
        changed_only = definition.transition is None
        return change.stored(self.declared.owner, definition.compared_fields, changed_only=changed_only)

    @property
    def captured_in(self) -> int | None:
        """The transaction that has made the write, if it is not the open one."""
        return None if self.origin is None else self.origin.transaction

    @property
    def definition(self) -> EventDefinition:
        return self.declared.definition


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
    definition, was = desired.definition, replace(desired, armed=False, error="", timezone="")
    evaluate_definition(was, before, raw=False)
    if definition.date_field is not None:
        at = date_of(before, definition.date_field, was.timezone)
        return was.armed and at is not None and at <= now
    return was.armed


def desired_events(
    entity: models.Model,
    raw: bool,
    update_fields: Any,
    write: EventTrigger | None,
    only: Declared | None = None,
    origin: Origin | None = None,
) -> Iterator[DesiredEvent]:
    """Yield what ``entity`` declares about each of its events, or about ``only`` one, at a save or a captured write.

    ``raw``: a fixture is loaded. ``update_fields``: those of the save. ``write``: which kind of write it is.
    ``origin``: where a captured write comes from.
    """
    deferred = entity.get_deferred_fields()
    entity = _as_stored(entity)
    for declared in declared_on(type(entity)) if only is None else (only,):
        if raw and declared.owner._meta.concrete_model is not entity._meta.concrete_model:
            continue  # a fixture has a separate row for the parent, and this instance lacks its columns
        definition = declared.definition
        if definition.transition is not None:
            transition = None if raw or write is None else _desired_transition(declared, entity, update_fields, origin)
            if transition is not None:
                yield transition
            continue
        counts = write in definition.triggers and not raw
        if definition.triggers and not counts and not (definition.watch_fields and write):
            continue
        desired = DesiredEvent(
            declared, declared.entity_id_of(entity), definition.name, "", None, "", False, write if counts else None
        )
        desired.origin = origin
        if definition.watch_fields:
            untouched = update_fields is not None and not _columns(entity, definition.watch_fields) & _columns(
                entity, update_fields
            )
            desired.watched = NOT_WRITTEN if untouched else watched_values(entity, definition)
            before = UNKNOWN if untouched or raw or not write else _values_before(declared, entity, origin)
            if before is not UNKNOWN:
                desired.change = Change(before, values_of(entity, definition.watch_fields))
        evaluate_definition(desired, entity, raw)
        name = definition.date_field
        if name is not None:
            untouched = (update_fields is not None and name not in update_fields) or name in deferred
            desired.at = NOT_WRITTEN if untouched else date_of(entity, name, desired.timezone)
        yield desired


def _values_before(declared: Declared, entity: models.Model, origin: Origin | None) -> Values | None:
    return values_before(declared, entity, alias_of(Event)) if origin is None else origin.values_before(declared)


def _desired_transition(
    declared: Declared, entity: models.Model, update_fields: Any, origin: Origin | None
) -> DesiredEvent | None:
    """Return what ``entity`` declares about an event with ``was=`` or ``becomes=``; None if this save is no transition
    and no earlier one of its transaction was."""
    definition = declared.definition
    compared = _columns(entity, definition.compared_fields)
    written = compared if update_fields is None else _columns(entity, update_fields)
    before = UNKNOWN if compared.isdisjoint(written) else _values_before(declared, entity, origin)
    # All saves of a transaction are one write: what it has inserted is created.
    kind = EventTrigger.CREATE if before is None else EventTrigger.UPDATE
    if before is UNKNOWN or kind not in definition.triggers:
        return None
    desired = DesiredEvent(declared, declared.entity_id_of(entity), definition.name, "", None, "", False, kind)
    desired.origin, desired.is_partial = origin, not compared <= written
    if desired.is_partial:
        return desired
    desired.change = Change(before, values_of(entity, definition.compared_fields))
    # An earlier write of another transaction may have armed it: its row says so.
    is_armed = desired.captured_in is not None or desired.key in ValuesBefore.of(alias_of(Event)).armed
    if update_fields is None:
        evaluate_definition(desired, entity, raw=False)
        return desired if desired.armed or desired.error or is_armed else None
    # The condition may read what was not saved, which may be out of date on the instance.
    desired.is_partial = is_armed or _may_be_transition(desired, entity)
    return desired if desired.is_partial else None


def _may_be_transition(desired: DesiredEvent, entity: models.Model) -> bool:
    try:
        with savepoint_on_query(alias_of(Event)):
            return desired.is_transition
    except Exception:  # recorded when it is evaluated with the row
        return True


def evaluate_definition(desired: DesiredEvent, entity: models.Model, raw: bool) -> None:
    """Call the functions of the definition. An error is recorded with the event and never fails the save."""
    definition = desired.definition
    started = time.monotonic()
    with own_failures(connections[alias_of(Event)]) as is_ours:
        try:
            with savepoint_on_query(alias_of(Event)):
                if not desired.is_transition:
                    return
                if definition.timezone is not None:
                    desired.timezone = definition.timezone_of(entity)
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
            is_final = isinstance(raised, AutomationError) and not raised.is_retryable
            desired.is_retryable = not is_final and not is_last


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


def date_of(entity: models.Model, name: str, timezone: str = "") -> datetime | None:
    """Return the value of a date field as a moment in time; a day is midnight in the time zone of this name."""
    field = entity._meta.get_field(name)
    value = getattr(entity, name)
    if value is None:
        return None
    what = f"{entity._meta.label}.{name} of {entity.pk}"
    if isinstance(value, str):
        value = field.to_python(value)  # type: ignore[union-attr]
    return in_utc(aware(value, what, zone_or_default(timezone)))
