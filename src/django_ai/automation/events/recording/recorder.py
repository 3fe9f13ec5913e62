"""The recorder: write what each save of an entity changes in its event rows, in the transaction of the save.

The first save inserts a pending row for each definition (one statement). Later saves read the rows (one statement) and
write only changes: a date or time zone that moved, a condition that flipped, a watched field. Where a definition lets
its event occur again, the old row becomes history and a new one replaces it (``_replace``). An immediate event whose
condition is true becomes due at once, and ``CommitBatch`` makes it occur after the commit; if that process dies, a
worker does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import models, transaction
from django.db.models import Case, F, Value, When

from ...db.inserts import insert_ignoring
from ...db.selects import compiled_select
from ...db.writer import alias_of, from_writer
from ...exceptions import AutomationError, WrongDatabaseError
from ...queues.lease import revoke
from ..declarations import Declared, declared_on
from ..definitions import EventTrigger
from ..models import Event, EventStatus
from ..subscribers import subscribers
from ..timing import not_fired, skip_note
from ..zone_queries import load_zones
from .desired_event import DesiredEvent, desired_events, mark_existing, read_from_table
from .entity_state import as_before_save
from .event_row import apply_desired, differs, needs_row, new_row, occurs_again
from .follow_up import follow_up, report_failures
from .origin import Origin

MAX_WRITE_ATTEMPTS = 20
"""Attempts to insert or update a row that concurrent transactions change, before an error is raised."""


def refuse_other_database(model: type[models.Model], using: str) -> None:
    """Raise ``WrongDatabaseError`` unless ``using`` is the database of the automation tables."""
    if using != alias_of(Event):
        raise WrongDatabaseError(
            f"{model._meta.label} declares events and was written to the database {using!r}, but the automation tables "
            f"are in {alias_of(Event)!r}. Route both to one database: an event commits with its entity or not at all."
        )


@from_writer()
def record(
    entities: Sequence[models.Model],
    now: datetime,
    *,
    created: bool = False,
    raw: bool = False,
    update_fields: Any = None,
    read_before: bool = False,
    only: Declared | None = None,
) -> int:
    """Update the event rows of ``entities`` (all of one class), and return how many rows were written.

    ``read_before``: the entities were read earlier and are not being saved, so those that seem to differ are locked and
    read again. ``only``: the one event to update (default: all that the class declares). Runs in the transaction of the
    caller. A condition that raises never fails the save: a worker evaluates it again, or its event is parked.
    """
    write = None if read_before else EventTrigger.CREATE if created else EventTrigger.UPDATE
    desired = [each for entity in entities for each in desired_events(entity, raw, update_fields, write, only)]
    if not desired:
        return 0
    with transaction.atomic(using=alias_of(Event), savepoint=False):
        if created:
            return _insert(desired, now, raw, is_new_entity=not raw)
        known = _rows_by_key(desired)
        if update_fields is not None or read_before or any(each.definition.watch_fields for each in desired):
            doubtful = {
                each.entity_id
                for each in desired
                if each.is_partial or each.key not in known or differs(known[each.key], each)
            }
            if not doubtful:
                if not read_before:
                    report_failures([(known[each.key], each) for each in desired])
                return 0
            # The instance may have values that this save omits, that were changed since it was read, or that the
            # database rounds. The values in the table count.
            fresh = [read_from_table(entity, lock=read_before) for entity in entities if _ids_of(entity) & doubtful]
            present = [entity for entity in fresh if entity is not None]
            desired = [each for entity in present for each in desired_events(entity, raw, None, write, only)]
            known = _rows_by_key(desired)
        unseen = [each for each in desired if each.key not in known]
        if read_before:  # no save is running: an immediate event waits for the next one
            unseen = [each for each in unseen if each.definition.is_scheduled]
        if unseen and not raw:
            mark_existing(unseen, None if read_before else as_before_save(entities[0]), now, saved=not read_before)
        written = _insert(unseen, now, raw, is_new_entity=False)
        return written + _update([(known[each.key], each) for each in desired if each.key in known], now)


@from_writer()
def record_captured(
    writes: Sequence[tuple[models.Model, models.Model | None, Origin]],
    declared: Sequence[Declared],
    write: EventTrigger,
    now: datetime,
) -> int:
    """Update the event rows of entities that were written without a signal, and return how many rows were written.

    ``writes``: each entity as one write has left it, as it was before (None: it did not exist), and where the write
    comes from. They are of one class, and each entity is there once. ``declared``: the events to update. Runs in the
    transaction of the caller.
    """
    desired: list[DesiredEvent] = []
    before: dict[str, models.Model | None] = {}
    states = [state for entity, old, _ in writes for state in (entity, old) if state is not None]
    load_zones(states, [each.definition for each in declared])
    for entity, old, origin in writes:
        for only in declared:
            for each in desired_events(entity, False, None, write, only, origin):
                before[each.key] = old
                desired.append(each)
    if not desired:
        return 0
    with transaction.atomic(using=alias_of(Event), savepoint=False):
        if write is EventTrigger.CREATE:
            return _insert(desired, now, False, is_new_entity=True)
        known = _rows_by_key(desired)
        unseen = [each for each in desired if each.key not in known]
        for each in unseen:
            mark_existing([each], before[each.key], now, saved=True)
        written = _insert(unseen, now, False, is_new_entity=False)
        return written + _update([(known[each.key], each) for each in desired if each.key in known], now)


def _ids_of(entity: models.Model) -> set[str]:
    return {declared.entity_id_of(entity) for declared in declared_on(type(entity))}


@compiled_select
def _rows_with(keys: Sequence[str]) -> models.QuerySet[Event]:
    return Event.objects.filter(active_key__in=keys)


def _rows_of(desired: Sequence[DesiredEvent]) -> list[Event]:
    return _rows_with([each.key for each in desired])


def _rows_by_key(desired: Sequence[DesiredEvent]) -> dict[str | None, Event]:
    return {row.active_key: row for row in _rows_of(desired)}


def _insert(
    desired: list[DesiredEvent], now: datetime, raw: bool, *, is_new_entity: bool, tries: int = MAX_WRITE_ATTEMPTS
) -> int:
    """Insert first rows. ``is_new_entity``: it was just inserted, so existing rows belong to a deleted entity."""
    desired = [each for each in desired if needs_row(each)]
    if not desired:
        return 0
    rows = [new_row(each, now, raw) for each in desired]
    insert_ignoring(Event, rows, key="active_key")
    refused = [each for each, row in zip(desired, rows, strict=True) if row.pk is None]
    rows = [row for row in rows if row.pk is not None]
    follow_up(rows, now, fresh=True)
    if not refused or raw:
        return len(rows)
    present = _rows_of(refused)
    if is_new_entity:
        # Raw SQL has deleted an entity with the same primary key. Its rows must not count for this one.
        _release_keys(present, now)
        return len(rows) + _insert(refused, now, raw, is_new_entity=False)
    # A concurrent first save was faster; this transaction has the newer state.
    pairs = {row.active_key: row for row in present}
    missing = [each for each in refused if each.key not in pairs]
    if missing and not tries:
        raise AutomationError(_invisible_row_message(missing[0]))
    written = len(rows) + _update([(pairs[each.key], each) for each in refused if each.key in pairs], now)
    # A missing row may have been deleted or replaced since the insert was refused.
    return written + (_insert(missing, now, raw, is_new_entity=False, tries=tries - 1) if missing else 0)


def _invisible_row_message(desired: DesiredEvent) -> str:
    return (
        f"The event {desired.definition.name!r} of {desired.declared.label} {desired.entity_id} has a row already, "
        f"and this transaction does not see it, so it cannot be armed. Read from the database that is written to (the "
        f"automation tables are in {alias_of(Event)!r}) with the isolation level READ COMMITTED, Django's default, or "
        "save again."
    )


def _release_keys(rows: list[Event], now: datetime) -> None:
    """Let rows of a deleted entity become history: pending ones are cancelled."""
    revoke(
        Event.objects.filter(pk__in=[row.pk for row in rows]),
        active_key=None,
        wake_at=None,
        status=Case(When(status=EventStatus.PENDING, then=Value(EventStatus.CANCELLED.value)), default=F("status")),
    )
    for subscriber in subscribers():
        subscriber.withdrawn(rows, now, "its entity was deleted")


def _update(pairs: list[tuple[Event, DesiredEvent]], now: datetime) -> int:
    """Update or replace rows that differ from what is desired, and return how many were written."""
    changed, renewed, same = [], [], []
    for known, desired in pairs:
        row: Event | None = known
        for _ in range(MAX_WRITE_ATTEMPTS):
            if row is None:  # its key was released meanwhile: insert a first row
                row = new_row(desired, now, False)
                if insert_ignoring(Event, [row], key="active_key"):
                    renewed.append(row)
                    break
            elif not differs(row, desired):
                same.append((row, desired))
                break
            elif occurs_again(row, desired, now):
                new = _replace(row, desired, now)
                if new is not None:
                    renewed.append(new)
                    break
            elif _write(row, desired, now):
                changed.append(row)
                break
            row = Event.objects.filter(active_key=desired.key).first()
        else:
            raise AutomationError(
                f"{known} is changed by other transactions, and this one does not see the changes. Use the isolation "
                "level READ COMMITTED (Django's default), or save again."
            )
    follow_up(changed, now, fresh=False)
    follow_up(renewed, now, fresh=True)
    report_failures(same)
    return len(changed) + len(renewed)


RECORDED_COLUMNS = (
    "event_name",
    "namespace",
    "trigger",
    "watched",
    "at",
    "timezone",
    "armed",
    "fired",
    "status",
    "error",
    "attempt",
    "parked_at",
    "caused_by",
    "depth",
    "trace_context",
    "wake_at",
    "planned_for",
    "recorded_after",
)


def _write(row: Event, desired: DesiredEvent, now: datetime) -> bool:
    """Write what the entity declares now to its row, and return whether it was written.

    Fenced on ``seq``: if a worker has made the event occur since the row was read, nothing is written.
    """
    seq = row.seq
    apply_desired(row, desired, now)
    columns = [*RECORDED_COLUMNS, "changed_values"] if desired.definition.compared_fields else RECORDED_COLUMNS
    if not revoke(Event.objects.filter(pk=row.pk, seq=seq), **{name: getattr(row, name) for name in columns}):
        return False
    row.seq = seq + 1
    return True


def _replace(row: Event, desired: DesiredEvent, now: datetime) -> Event | None:
    """Let ``row`` become history and insert a new row in its place. None: a concurrent transaction was faster."""
    old = Event.objects.filter(pk=row.pk, active_key=desired.key, seq=row.seq)
    if desired.definition.is_scheduled:
        # Its date has moved, so its remaining milestones are dropped.
        ended: dict[str, Any] = {
            "fired": [*row.fired, *not_fired(row)],
            "wake_at": now if row.pending_notifications else None,
        }
        if row.status == EventStatus.PENDING:
            ended |= {
                "status": EventStatus.CANCELLED,
                "error": "Its date moved after a milestone had fired.",
            }
        elif skipped := not_fired(row):
            ended["error"] = skip_note(skipped, "its date moved, and the new date has its own event")
        moved = revoke(old, active_key=None, **ended)
    else:
        # Only the key changes, so a lease stays valid: the row still occurs, or fires its offsets.
        moved = old.update(active_key=None)
    if not moved:
        return None
    if desired.definition.is_scheduled:
        for subscriber in subscribers():
            subscriber.withdrawn([row], now, "the date of its event has moved, and the new date has its own run")
    new = new_row(desired, now, False, replaces=True)
    return new if insert_ignoring(Event, [new], key="active_key") else None
