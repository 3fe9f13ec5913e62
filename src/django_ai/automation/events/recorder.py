"""The recorder: what each save and delete of an entity does to its event rows, in the same transaction.

The first save inserts a PENDING row for each definition (one statement); later saves read them (one statement) and
write only what changed: a date that moved, a condition that flipped. An immediate event whose condition is true
becomes due under a lease of this process, and ``occurrence.CommitBatch`` makes it occur after the commit; if the
process dies in between, the lease runs out and a worker does it.

Django sends ``post_save`` after the statement of a save in autocommit mode has committed. So that event and entity
commit together, ``save_base`` of models that declare events is wrapped in ``atomic``.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections, models, router, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.signals import class_prepared, post_delete, post_save, pre_save
from django.utils import timezone

from ..conf import conf
from ..exceptions import AutomationError, EventStormError, WrongDatabaseError
from ..queues.cause import current_cause
from ..queues.clock import aware, later
from ..queues.database import is_database_failure
from ..queues.executor import ring_after_commit
from ..queues.jsontext import storable
from ..queues.lease import alias_of, disturb, insert_ignoring
from .callbacks import CANCELLED, CREATED
from .definitions import Declared, declared_on, forget_declarations, listed
from .listeners import listeners
from .models import Event, EventStatus, active_key, take_snapshot
from .occurrence import CommitBatch
from .timing import hears, next_wake

UNKNOWN = object()
TRIES = 20


@dataclass(slots=True)
class Wanted:
    """What an entity says about one of its events now. ``at`` is UNKNOWN where the save did not touch the date."""

    declared: Declared
    entity_id: str
    at: Any
    armed: bool
    error: str = ""

    @property
    def key(self) -> str:
        return active_key(self.declared.label, self.entity_id, self.declared.definition.name)


def watch(model: type[models.Model]) -> None:
    """Record the events of ``model`` from now on. Idempotent."""
    if model._meta.abstract or model._meta.swapped or not listed(model):
        return
    forget_declarations()
    uid = f"django_ai.automation.recorder:{model._meta.label}"
    pre_save.connect(refuse_naive_dates, sender=model, dispatch_uid=uid)
    post_save.connect(on_save, sender=model, dispatch_uid=uid)
    post_delete.connect(on_delete, sender=model, dispatch_uid=uid)
    if not getattr(model.save_base, "commits_events", False):
        model.save_base = _in_one_transaction(model.save_base)  # type: ignore[method-assign]


def _in_one_transaction(save_base: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save_base)
    def wrapper(self: models.Model, *args: Any, using: str | None = None, **kwargs: Any) -> Any:
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using, savepoint=False):
            return save_base(self, *args, using=using, **kwargs)

    wrapper.alters_data = True  # type: ignore[attr-defined]
    wrapper.commits_events = True  # type: ignore[attr-defined]
    return wrapper


def connect() -> None:
    """Watch every model that declares events, those that are loaded later too."""
    from django.apps import apps

    for model in apps.get_models():
        watch(model)
    class_prepared.connect(_on_class_prepared, dispatch_uid="django_ai.automation.recorder")
    pre_save.connect(on_raw_event, sender=Event, dispatch_uid="django_ai.automation.recorder")


def _on_class_prepared(sender: Any, **kwargs: Any) -> None:
    watch(sender)


def on_raw_event(sender: Any, instance: Event, raw: bool, using: str, **kwargs: Any) -> None:
    """Let a fixture that holds both entities and events replace what loading the entity recorded."""
    if raw and instance.active_key is not None:
        Event.objects.using(using).filter(active_key=instance.active_key).exclude(pk=instance.pk).delete()


def refuse_naive_dates(sender: type[models.Model], instance: models.Model, raw: bool, **kwargs: Any) -> None:
    """Refuse a date without a time zone before anything is written. Raises ``NaiveDatetimeError``."""
    if raw:
        return
    for declared in declared_on(sender):
        name = declared.definition.date_field
        value = instance.__dict__.get(name) if name else None
        if isinstance(value, datetime):
            aware(value, f"{sender._meta.label}.{name} of {instance.pk or 'a new row'}")


def on_save(
    sender: type[models.Model],
    instance: models.Model,
    created: bool,
    raw: bool,
    using: str,
    update_fields: Any = None,
    **kwargs: Any,
) -> None:
    refuse_other_database(sender, using)
    record([instance], timezone.now(), created=created, raw=raw, update_fields=update_fields)


def refuse_other_database(model: type[models.Model], using: str) -> None:
    if using != alias_of(Event):
        raise WrongDatabaseError(
            f"{model._meta.label} declares events and was written to the database {using!r}, but the automation tables "
            f"are in {alias_of(Event)!r}. Route both to one database: an event commits with its entity or not at all."
        )


def record(
    entities: Sequence[models.Model],
    now: datetime,
    *,
    created: bool = False,
    raw: bool = False,
    update_fields: Any = None,
    read_before: bool = False,
) -> int:
    """Bring the event rows of ``entities`` (all of one class) in line; return how many rows were written.

    ``read_before``: the entities were read some time ago, so those that seem to differ are locked and read again.
    Runs in the caller's transaction. A condition that raises parks its event and never the save.
    """
    wanted = [each for entity in entities for each in _wanted(entity, raw, update_fields)]
    if not wanted:
        return 0
    with transaction.atomic(using=alias_of(Event), savepoint=False):
        if created:
            return _insert(wanted, now, raw, reborn=not raw)
        keys = [each.key for each in wanted]
        known = {row.active_key: row for row in Event.objects.filter(active_key__in=keys)}
        if update_fields is not None or read_before:
            doubtful = {each.entity_id for each in wanted if each.key not in known or _differs(known[each.key], each)}
            if not doubtful:
                return 0
            # The instance may hold values that this save left out, or that were changed since it was read; what counts
            # is what is in the table.
            fresh = [_from_table(entity, lock=read_before) for entity in entities if str(entity.pk) in doubtful]
            wanted = [each for entity in fresh if entity is not None for each in _wanted(entity, raw, None)]
            keys = [each.key for each in wanted]
            known = {row.active_key: row for row in Event.objects.filter(active_key__in=keys)}
        written = _insert([each for each in wanted if each.key not in known], now, raw, reborn=False)
        return written + _change([(known[each.key], each) for each in wanted if each.key in known], now)


def _wanted(entity: models.Model, raw: bool, update_fields: Any) -> Iterator[Wanted]:
    deferred = entity.get_deferred_fields()
    entity = _as_saved(entity)
    for declared in declared_on(type(entity)):
        if raw and declared.owner._meta.concrete_model is not entity._meta.concrete_model:
            continue  # a fixture holds the parent's row by itself, and this instance none of its columns
        definition, error, armed = declared.definition, "", False
        pk = declared.pk_of(entity)
        at: Any = None
        name = definition.date_field
        if name is not None:
            if (update_fields is not None and name not in update_fields) or name in deferred:
                at = UNKNOWN
            else:
                at = _date_of(entity, name)
        try:
            with _condition_of(entity):
                armed = definition.holds_for(entity)
        except Exception as raised:
            if is_database_failure(raised, connections[alias_of(Event)]):
                raise  # a deadlock or a lost connection: the user's transaction is over anyway
            # In a fixture the rows that a condition reads may come later: its verdict waits for the first real save.
            error = "" if raw else storable(f"The condition of {definition!r} raised:\n{traceback.format_exc()}")
        yield Wanted(declared, str(pk), at, armed, error)


def _as_saved(entity: models.Model) -> models.Model:
    """Return the entity with values where the save left expressions: of ``F("count") + 1`` only the database knows."""
    if any(hasattr(value, "resolve_expression") for value in entity.__dict__.values()):
        return _from_table(entity) or entity
    return entity


def _from_table(entity: models.Model, *, lock: bool = False) -> models.Model | None:
    rows = type(entity)._base_manager.using(entity._state.db)
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
def _condition_of(entity: models.Model) -> Iterator[None]:
    """Let a condition query without harm: its first query opens a savepoint, so that an error of the database in it
    does not spoil the user's transaction. A condition that does not query costs nothing."""
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


def _insert(wanted: list[Wanted], now: datetime, raw: bool, *, reborn: bool) -> int:
    """Insert first rows. ``reborn``: the entity is surely new, so rows that exist belong to a dead one."""
    if not wanted:
        return 0
    batch = CommitBatch.of(alias_of(Event))
    rows = [_new_row(each, now, raw, batch) for each in wanted]
    insert_ignoring(Event, rows, key="active_key")
    refused = [each for each, row in zip(wanted, rows, strict=True) if row.pk is None]
    rows = [row for row in rows if row.pk is not None]
    _follow(rows, now, batch, fresh=True)
    if not refused or raw:
        return len(rows)
    present = list(Event.objects.filter(active_key__in=[each.key for each in refused]))
    if reborn:
        # An entity of the same primary key went without a trace (raw SQL). Its rows must not speak for this one.
        _bury(present, now)
        return len(rows) + _insert(refused, now, raw, reborn=False)
    # Two first saves at once: the other one was faster, and ours is the newer state.
    pairs = {row.active_key: row for row in present}
    return len(rows) + _change([(pairs[each.key], each) for each in refused if each.key in pairs], now)


def _bury(rows: list[Event], now: datetime) -> None:
    disturb(
        Event.objects.filter(pk__in=[row.pk for row in rows]),
        active_key=None,
        wake_at=None,
        status=Case(When(status=EventStatus.PENDING, then=Value(EventStatus.CANCELLED.value)), default=F("status")),
    )
    for listener in listeners():
        listener.withdrawn(rows, now)


def _new_row(wanted: Wanted, now: datetime, raw: bool, batch: CommitBatch) -> Event:
    definition = wanted.declared.definition
    cause = current_cause()
    row = Event(
        entity_type=wanted.declared.label,
        entity_id=wanted.entity_id,
        event_name=definition.name,
        event_created_at=now,
        active_key=wanted.key,
        at=None if wanted.at is UNKNOWN else wanted.at,
        armed=wanted.armed,
        caused_by=cause.label if cause else "",
        depth=cause.depth if cause else 0,
    )
    if wanted.error:
        row.status, row.error = EventStatus.PARKED, wanted.error
    elif raw and not definition.is_scheduled and wanted.armed:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its condition already true."
    elif definition.is_scheduled and row.at is not None and later(row.at, definition.grace) < now:
        row.status, row.error = EventStatus.EXPIRED, f"Its date was already past by more than {definition.grace}."
    elif raw and definition.is_scheduled and row.at is not None and row.at <= now:
        row.status, row.error = EventStatus.EXPIRED, "Loaded from a fixture with its date already past."
    if raw:
        row.fired = [CREATED]
    _set_timer(row, wanted, now, batch)
    return row


def _set_timer(row: Event, wanted: Wanted, now: datetime, batch: CommitBatch) -> None:
    """Set ``wake_at``; what is due this instant is leased to this process's commit."""
    definition = wanted.declared.definition
    if not definition.is_scheduled and row.armed and row.at is None and row.status == EventStatus.PENDING:
        row.at = now
    if row.depth > conf().MAX_DEPTH and row.status == EventStatus.PENDING and row.armed and row.at is not None:
        row.status = EventStatus.PARKED
        row.error = (
            f"{EventStormError.__name__}: {row} is number {row.depth} in a chain of events that cause each other "
            f"(last by {row.caused_by}); AUTOMATION['MAX_DEPTH'] is {conf().MAX_DEPTH}. Break the circle, then resume."
        )
    row.wake_at, row.lease = next_wake(row, definition, now), None
    occurs = not definition.is_scheduled and row.status == EventStatus.PENDING and row.armed
    if row.wake_at is not None and row.wake_at <= now and (occurs or hears(row.event_name, CREATED)):
        row.wake_at, row.lease = now + conf().LEASE, batch.token


def _change(pairs: list[tuple[Event, Wanted]], now: datetime) -> int:
    batch = CommitBatch.of(alias_of(Event))
    changed = []
    for row, wanted in pairs:
        for _ in range(TRIES):
            if not _differs(row, wanted):
                break
            seq = row.seq
            _adopt(row, wanted, now, batch)
            names = ("at", "armed", "status", "error", "caused_by", "depth", "wake_at", "lease")
            values = {name: getattr(row, name) for name in names}
            # Compare and set: a worker may have made the event occur since we read it.
            if disturb(Event.objects.filter(pk=row.pk, seq=seq), **values):
                row.seq = seq + 1
                changed.append(row)
                break
            row.refresh_from_db()
        else:
            raise AutomationError(
                f"{row} changes under our hands, and this transaction does not see how. Use the isolation level READ "
                "COMMITTED (Django's default), or save again."
            )
    _follow(changed, now, batch, fresh=False)
    return len(changed)


def _date(row: Event, wanted: Wanted) -> datetime | None:
    scheduled = wanted.declared.definition.is_scheduled
    return row.at if wanted.at is UNKNOWN or not scheduled else wanted.at


def _differs(row: Event, wanted: Wanted) -> bool:
    if row.status == EventStatus.CANCELLED:
        return False
    if wanted.error:
        return row.status == EventStatus.PENDING
    return (row.at, row.armed) != (_date(row, wanted), wanted.armed)


def _adopt(row: Event, wanted: Wanted, now: datetime, batch: CommitBatch) -> None:
    """Take over what the entity says now."""
    definition, at = wanted.declared.definition, _date(row, wanted)
    if wanted.armed and not row.armed:
        cause = current_cause()
        row.caused_by, row.depth = (cause.label, cause.depth) if cause else ("", 0)
        if row.status == EventStatus.PENDING and not definition.is_scheduled:
            at = now
    too_late = definition.is_scheduled and at is not None and later(at, definition.grace) < now
    if row.status == EventStatus.PENDING and too_late and wanted.armed and not row.armed:
        row.status, row.error = EventStatus.EXPIRED, "Its condition turned true only after its grace."
    if row.status == EventStatus.EXPIRED and at is not None and at != row.at and later(at, definition.grace) >= now:
        # It never occurred, and its date was moved to where it still may.
        row.status, row.error = EventStatus.PENDING, ""
    row.at, row.armed = at, wanted.armed
    if wanted.error:
        row.status, row.error = EventStatus.PARKED, wanted.error
    _set_timer(row, wanted, now, batch)


def _follow(rows: list[Event], now: datetime, batch: CommitBatch, *, fresh: bool) -> None:
    if not rows:
        return
    for listener in listeners():
        listener.plan(rows, now, fresh=fresh)
    mine = [row for row in rows if row.lease == batch.token]
    if mine:
        batch.add(mine)
    elif any(row.wake_at is not None and row.wake_at <= now for row in rows):
        ring_after_commit(batch.alias)


def on_delete(sender: type[models.Model], instance: models.Model, using: str, **kwargs: Any) -> None:
    """Cancel what is pending, keep a snapshot, and free the keys: the same primary key may come again."""
    refuse_other_database(sender, using)
    now = timezone.now()
    keys = {active_key(each.label, each.pk_of(instance), each.definition.name): each for each in declared_on(sender)}
    rows = list(Event.objects.filter(active_key__in=keys))
    if rows:
        snapshot = take_snapshot(instance)
        audible = [name for name in {row.event_name for row in rows} if hears(name, CANCELLED)]
        was_pending = Q(status__in=[EventStatus.PENDING, EventStatus.PARKED], occurred_at=None)
        disturb(
            Event.objects.filter(pk__in=[row.pk for row in rows]),
            active_key=None,
            snapshot=snapshot,
            wake_at=Case(
                When(Q(telling=True) | (was_pending & Q(event_name__in=audible)), then=Value(now)),
                default=Value(None),
                output_field=Event._meta.get_field("wake_at"),
            ),
            status=Case(When(was_pending, then=Value(EventStatus.CANCELLED.value)), default=F("status")),
        )
        for listener in listeners():
            listener.withdrawn(rows, now)
        ring_after_commit(using)
    for label, entity_id in {(each.label, str(each.pk_of(instance))) for each in keys.values()}:
        for listener in listeners():
            listener.entity_deleted(label, entity_id, now)
