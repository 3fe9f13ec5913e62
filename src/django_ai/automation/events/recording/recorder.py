"""The recorder: what each save and delete of an entity does to its event rows, in the same transaction.

The first save inserts a PENDING row for each definition (one statement); later saves read them (one statement) and
write only what changed: a date that moved, a condition that flipped, a field that is watched. Where a definition lets
its event occur again, the old row becomes history and a new one takes its place (``_renew``). An immediate event whose
condition is true becomes due at once, and ``occurrence.CommitBatch`` makes it occur after the commit; if the process
dies in between, a worker does it.
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
from django.db.models import Case, F, Value, When

from ...conf import conf
from ...db.errors import told_apart
from ...db.inserts import insert_ignoring
from ...db.writer import alias_of, from_writer
from ...exceptions import AutomationError, EventStormError, WrongDatabaseError
from ...queues.causation import current_cause
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...queues.signals import row_parked
from ...values.clock import aware, later
from ...values.digests import digest
from ...values.json_text import storable
from ..callbacks import CREATED
from ..definitions import Declared, EventDefinition, EventTrigger, declared_on
from ..matching.match import canonical
from ..models import Event, EventStatus, active_key
from ..occurrence import RETRY, CommitBatch, FailedEvaluation
from ..subscribers import subscribers
from ..timing import (
    hears,
    held_back,
    lies_ahead,
    moves_again,
    next_wake,
    not_fired,
    plan_of,
    rearm_future,
    skip_note,
    too_late,
)
from .entity_state import ALREADY, before_save, known_since
from .stored_values import may_differ

UNKNOWN = object()
TRIES = 20
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


def refuse_other_database(model: type[models.Model], using: str) -> None:
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
    """Bring the event rows of ``entities`` (all of one class) in line; return how many rows were written.

    ``read_before``: the entities were read some time ago and nobody saves them now, so those that seem to differ are
    locked and read again. ``only``: the one event that it is about (default: all that the class declares). Runs in the
    caller's transaction. A condition that raises parks its event and never the save.
    """
    write = None if read_before else EventTrigger.CREATE if created else EventTrigger.UPDATE
    wanted = [each for entity in entities for each in _wanted(entity, raw, update_fields, write, only)]
    if not wanted:
        return 0
    with transaction.atomic(using=alias_of(Event), savepoint=False):
        if created:
            return _insert(wanted, now, raw, reborn=not raw)
        known = _known(wanted)
        if update_fields is not None or read_before or any(each.definition.watch_fields for each in wanted):
            doubtful = {each.entity_id for each in wanted if each.key not in known or _differs(known[each.key], each)}
            if not doubtful:
                if not read_before:
                    _tell_again([(known[each.key], each) for each in wanted])
                return 0
            # The instance may hold values that this save left out, that were changed since it was read, or that the
            # database rounds; what counts is what is in the table.
            fresh = [_from_table(entity, lock=read_before) for entity in entities if _ids_of(entity) & doubtful]
            wanted = [
                each for entity in fresh if entity is not None for each in _wanted(entity, raw, None, write, only)
            ]
            known = _known(wanted)
        unseen = [each for each in wanted if each.key not in known]
        if read_before:  # nobody saves: an immediate event waits for the next save
            unseen = [each for each in unseen if each.definition.is_scheduled]
        if unseen and not raw:
            _judge_the_past(unseen, None if read_before else before_save(entities[0]), now, saved=not read_before)
        written = _insert(unseen, now, raw, reborn=False)
        return written + _change([(known[each.key], each) for each in wanted if each.key in known], now)


def _ids_of(entity: models.Model) -> set[str]:
    return {declared.entity_id_of(entity) for declared in declared_on(type(entity))}


def _judge_the_past(unseen: Sequence[DesiredEvent], before: models.Model | None, now: datetime, *, saved: bool) -> None:
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


def _present(wanted: Sequence[DesiredEvent]) -> list[Event]:
    return list(Event.objects.filter(active_key__in=[each.key for each in wanted]))


def _known(wanted: Sequence[DesiredEvent]) -> dict[str | None, Event]:
    return {row.active_key: row for row in _present(wanted)}


def _wanted(
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
    with told_apart(connections[alias_of(Event)]) as is_ours:
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
    return (_from_table(entity) or entity) if may_differ(entity) else entity


def _from_table(entity: models.Model, *, lock: bool = False) -> models.Model | None:
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


def _insert(wanted: list[DesiredEvent], now: datetime, raw: bool, *, reborn: bool, tries: int = TRIES) -> int:
    """Insert first rows. ``reborn``: the entity is surely new, so rows that exist belong to a dead one."""
    wanted = [each for each in wanted if _needs_row(each)]
    if not wanted:
        return 0
    rows = [new_row(each, now, raw) for each in wanted]
    insert_ignoring(Event, rows, key="active_key")
    refused = [each for each, row in zip(wanted, rows, strict=True) if row.pk is None]
    rows = [row for row in rows if row.pk is not None]
    follow(rows, now, fresh=True)
    if not refused or raw:
        return len(rows)
    present = _present(refused)
    if reborn:
        # An entity of the same primary key went without a trace (raw SQL). Its rows must not speak for this one.
        _bury(present, now)
        return len(rows) + _insert(refused, now, raw, reborn=False)
    # Two first saves at once: the other one was faster, and ours is the newer state.
    pairs = {row.active_key: row for row in present}
    gone = [each for each in refused if each.key not in pairs]
    if gone and not tries:
        raise AutomationError(_unseen(gone[0]))
    written = len(rows) + _change([(pairs[each.key], each) for each in refused if each.key in pairs], now)
    # Deleted or moved between the refusal and our look, perhaps.
    return written + (_insert(gone, now, raw, reborn=False, tries=tries - 1) if gone else 0)


def _unseen(wanted: DesiredEvent) -> str:
    return (
        f"The event {wanted.definition.name!r} of {wanted.declared.label} {wanted.entity_id} has a row already, "
        f"and this transaction does not see it, so it cannot be armed. Read where you write (the automation tables "
        f"are in {alias_of(Event)!r}) in the isolation level READ COMMITTED, Django's default, or save again."
    )


def _needs_row(wanted: DesiredEvent) -> bool:
    """Say whether there is anything to keep: of what counts writes, a row is a write, or what the fields were."""
    definition = wanted.definition
    return not definition.triggers or bool(definition.watch_fields or wanted.armed or wanted.error)


def _bury(rows: list[Event], now: datetime) -> None:
    revoke(
        Event.objects.filter(pk__in=[row.pk for row in rows]),
        active_key=None,
        wake_at=None,
        status=Case(When(status=EventStatus.PENDING, then=Value(EventStatus.CANCELLED.value)), default=F("status")),
    )
    for listener in subscribers():
        listener.withdrawn(rows, now, "its entity is gone")


def new_row(wanted: DesiredEvent, now: datetime, raw: bool, *, again: bool = False) -> Event:
    """Return the unsaved row for what is wanted. ``again``: it takes the place of one that was there before."""
    definition = wanted.definition
    cause = current_cause()
    # Nobody knows what the watched fields were before: this write says only what they are.
    blind = bool(definition.watch_fields) and wanted.write == EventTrigger.UPDATE and not again
    row = Event(
        entity_type=wanted.declared.label,
        entity_id=wanted.entity_id,
        event_name=wanted.name,
        declared_as=definition.name,
        namespace=wanted.namespace,
        event_created_at=now,
        active_key=wanted.key,
        at=None if wanted.at is UNKNOWN else wanted.at,
        armed=wanted.armed and not blind,
        trigger=wanted.write.value if wanted.write and not blind else "",
        watched="" if wanted.watched is UNKNOWN else wanted.watched,
        caused_by=cause.label if cause else "",
        depth=cause.depth if cause else 0,
    )
    row.failed_evaluation = wanted.failed_evaluation
    if wanted.error and not wanted.is_retryable:
        row.set_parked(wanted.error, now)
    elif wanted.already:
        row.status, row.error, row.fired = EventStatus.EXPIRED, ALREADY, [CREATED]
    elif raw and not definition.is_scheduled and wanted.armed:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its condition already true."
    elif definition.is_scheduled and row.at is not None and later(row.at, definition.grace) < now:
        row.status, row.error = EventStatus.EXPIRED, f"Its date was already past by more than {definition.grace}."
    elif raw and definition.is_scheduled and row.at is not None and row.at <= now:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its date already past."
    if raw:
        row.fired = [CREATED]
    _set_timer(row, wanted, now)
    if wanted.error and row.status == EventStatus.PENDING:
        _ask_again(row, wanted.error, now)
    return row


def _ask_again(row: Event, error: str, now: datetime) -> None:
    """Let a worker ask once more what raised in a save: the first attempt of ``occurrence.RETRY``."""
    row.attempt, row.error, row.lease = 1, error, None
    row.wake_at = now + RETRY.base_delay


def _set_timer(row: Event, wanted: DesiredEvent, now: datetime) -> None:
    """Set ``wake_at``."""
    definition = wanted.definition
    if not definition.is_scheduled and row.armed and row.at is None and row.status == EventStatus.PENDING:
        row.at = now
    if row.depth and definition.is_scheduled and lies_ahead(row, now):
        row.depth = 0
    if row.depth > conf().MAX_DEPTH and row.status == EventStatus.PENDING and row.armed and row.at is not None:
        row.set_parked(
            f"{EventStormError.__name__}: {row} is number {row.depth} in a chain of events that cause each other "
            f"(last by {row.caused_by}); AUTOMATION['MAX_DEPTH'] is {conf().MAX_DEPTH}. Break the circle, then resume.",
            now,
        )
    row.wake_at, row.planned_for = next_wake(row, definition, now), plan_of(row.declared_as)


def _occurs_at_commit(row: Event, now: datetime) -> bool:
    """Return whether the process that saves makes ``row`` occur, or tells of it, as soon as it has committed."""
    definition = row.definition
    if row.wake_at is None or row.wake_at > now or definition is None:
        return False
    return hears(row, CREATED) or (not definition.is_scheduled and row.status == EventStatus.PENDING and row.armed)


def _change(pairs: list[tuple[Event, DesiredEvent]], now: datetime) -> int:
    changed, renewed, same = [], [], []
    for known, wanted in pairs:
        row: Event | None = known
        for _ in range(TRIES):
            if row is None:  # deleted or buried meanwhile: it starts afresh
                row = new_row(wanted, now, False)
                if insert_ignoring(Event, [row], key="active_key"):
                    renewed.append(row)
                    break
            elif not _differs(row, wanted):
                same.append((row, wanted))
                break
            elif _is_another(row, wanted, now):
                new = _renew(row, wanted, now)
                if new is not None:
                    renewed.append(new)
                    break
            elif _write(row, wanted, now):
                changed.append(row)
                break
            row = Event.objects.filter(active_key=wanted.key).first()
        else:
            raise AutomationError(
                f"{known} changes under our hands, and this transaction does not see how. Use the isolation level READ "
                "COMMITTED (Django's default), or save again."
            )
    follow(changed, now, fresh=False)
    follow(renewed, now, fresh=True)
    _tell_again(same)
    return len(changed) + len(renewed)


def _tell_again(pairs: Iterable[tuple[Event, DesiredEvent]]) -> None:
    """Say what has raised in a save that writes nothing: a worker is about to ask again, or the event is parked."""
    for row, wanted in pairs:
        if wanted.failed_evaluation is not None:
            wanted.failed_evaluation.report(row)


WRITTEN = (
    "event_name",
    "namespace",
    "trigger",
    "watched",
    "at",
    "armed",
    "fired",
    "status",
    "error",
    "attempt",
    "parked_at",
    "caused_by",
    "depth",
    "wake_at",
    "planned_for",
)


def _write(row: Event, wanted: DesiredEvent, now: datetime) -> bool:
    """Write what the entity says now to its row. Compare and set: a worker may have made the event occur since we read
    it; then nothing is written."""
    seq = row.seq
    _adopt(row, wanted, now)
    if not revoke(Event.objects.filter(pk=row.pk, seq=seq), **{name: getattr(row, name) for name in WRITTEN}):
        return False
    row.seq = seq + 1
    return True


def _date(row: Event, wanted: DesiredEvent) -> datetime | None:
    return row.at if wanted.at is UNKNOWN or not wanted.definition.is_scheduled else wanted.at


def _differs(row: Event, wanted: DesiredEvent) -> bool:
    if wanted.definition.triggers:
        return _counts(row, wanted) or wanted.watched not in (UNKNOWN, row.watched)
    if row.status == EventStatus.CANCELLED:
        return False
    if wanted.error and row.attempt:
        return row.status == EventStatus.PENDING and row.at != _date(row, wanted)  # a worker is about to ask again
    if wanted.error:
        return row.status == EventStatus.PENDING
    if row.attempt and not row.armed:
        return True  # what raised has been answered
    names = (wanted.name, wanted.namespace)
    renamed = row.status == EventStatus.PENDING and (row.event_name, row.namespace) != names
    return renamed or (row.at, row.armed) != (_date(row, wanted), wanted.armed)


def _counts(row: Event, wanted: DesiredEvent) -> bool:
    """Say whether this write is one that the event occurs at. All writes of one transaction are one."""
    if not wanted.write or not (wanted.armed or wanted.error):
        return False
    if wanted.definition.watch_fields and wanted.watched in (UNKNOWN, row.watched):
        return False
    if not row.armed or row.status != EventStatus.PENDING:
        return True
    return not CommitBatch.of(alias_of(Event)).has(row)


def _is_another(row: Event, wanted: DesiredEvent, now: datetime) -> bool:
    """Say whether the event is to occur once more, in a row of its own."""
    definition, at = wanted.definition, _date(row, wanted)
    if definition.triggers:
        is_another = row.armed or row.attempt > 0 or row.status != EventStatus.PENDING
        return _counts(row, wanted) and is_another
    if not definition.rearm or wanted.error:
        return False
    if not definition.is_scheduled:
        return wanted.armed and not row.armed and row.status in (EventStatus.PROCESSED, EventStatus.EXPIRED)
    if at is None or at == row.at or later(at, definition.grace) < now:
        return False
    return moves_again(row) or (
        row.status == EventStatus.PENDING and any(listener.has_begun(row) for listener in subscribers())
    )


def _renew(row: Event, wanted: DesiredEvent, now: datetime) -> Event | None:
    """Let ``row`` become history and put a new one in its place. None: somebody else was faster."""
    old = Event.objects.filter(pk=row.pk, active_key=wanted.key, seq=row.seq)
    if wanted.definition.is_scheduled:
        # Its date has gone elsewhere, and what hung on it goes along.
        ended: dict[str, Any] = {
            "fired": [*row.fired, *not_fired(row)],
            "wake_at": now if row.pending_notifications else None,
        }
        if row.status == EventStatus.PENDING:
            ended |= {"status": EventStatus.CANCELLED, "error": "Its date moved after a part of it had fired."}
        elif skipped := not_fired(row):
            ended["error"] = skip_note(skipped, "its date moved, and the new one has an event of its own")
        moved = revoke(old, active_key=None, **ended)
    else:
        # Whoever has it in hand goes on: it still occurs, or fires its offsets, by itself.
        moved = old.update(active_key=None)
    if not moved:
        return None
    if wanted.definition.is_scheduled:
        for listener in subscribers():
            listener.withdrawn([row], now, "the date of its event has moved, and the new one has a run of its own")
    new = new_row(wanted, now, False, again=True)
    return new if insert_ignoring(Event, [new], key="active_key") else None


def _adopt(row: Event, wanted: DesiredEvent, now: datetime) -> None:
    """Take over what the entity says now."""
    row.failed_evaluation = wanted.failed_evaluation
    definition, at = wanted.definition, _date(row, wanted)
    armed, counts = wanted.armed, bool(definition.triggers) and _counts(row, wanted)
    if wanted.watched is not UNKNOWN:
        row.watched = wanted.watched
    if definition.triggers:
        armed = row.armed or (counts and wanted.armed)
    if counts or (row.status == EventStatus.PENDING and not definition.triggers):
        row.event_name, row.namespace = wanted.name, wanted.namespace
        row.trigger = wanted.write.value if wanted.write else ""
    if armed and not row.armed:
        cause = current_cause()
        row.caused_by, row.depth = (cause.label, cause.depth) if cause else ("", 0)
        if row.status == EventStatus.PENDING and not definition.is_scheduled:
            at = now
    is_late = definition.is_scheduled and at is not None and later(at, definition.grace) < now
    if row.status == EventStatus.PENDING and is_late and armed and not row.armed:
        row.status, row.error = EventStatus.EXPIRED, "Its condition turned true only after its grace."
    if row.status == EventStatus.EXPIRED and at is not None and at != row.at and later(at, definition.grace) >= now:
        # It never occurred, and its date was moved to where it still may.
        row.status, row.error = EventStatus.PENDING, ""
    # Where nothing is overdue, an offset whose time is long past is new, and not made up for, as in the reconciliation.
    is_quiet = at == row.at and (row.wake_at is None or row.wake_at > now)
    turned, row.at, row.armed = armed and not row.armed, at, armed
    rearm_future(row, now)
    if turned:
        held = held_back(row)
        if late := [milestone for milestone in too_late(row, definition, now) if milestone in held]:
            row.fired = [*row.fired, *late]
            row.error = skip_note(late, "recheck=True, and its condition turned true only after its grace")
    if is_quiet:
        row.fired = [*row.fired, *too_late(row, definition, now)]
    if wanted.error and not wanted.is_retryable:
        row.set_parked(wanted.error, now)
    is_asked = bool(row.attempt) and (bool(wanted.error) or bool(definition.triggers))
    if row.attempt and not is_asked:
        row.attempt, row.error = 0, ""
    asked_at = row.wake_at if row.lease is None else now + RETRY.base_delay
    _set_timer(row, wanted, now)
    if is_asked and row.status == EventStatus.PENDING:
        row.wake_at, row.lease = asked_at, None
    elif wanted.error and row.status == EventStatus.PENDING:
        _ask_again(row, wanted.error, now)


def follow(rows: list[Event], now: datetime, *, fresh: bool) -> None:
    if not rows:
        return
    for row in rows:
        if row.failed_evaluation is not None:
            row.failed_evaluation.report(row)
        if row.status == EventStatus.PARKED:
            row_parked.send_robust(Event, row=row, reason=row.error)
    for listener in subscribers():
        listener.plan(rows, now, fresh=fresh)
    mine = [row for row in rows if _occurs_at_commit(row, now)]
    if mine:
        CommitBatch.of(alias_of(Event)).add(mine)
    elif any(row.wake_at is not None and row.wake_at <= now for row in rows):
        ring_after_commit(alias_of(Event), Event)
