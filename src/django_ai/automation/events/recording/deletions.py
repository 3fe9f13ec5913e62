"""Deletions: what the deletion of entities does to their event rows, for all entities of one model at once.

Django sends ``pre_delete`` for every entity of a deletion, then deletes table by table, and after each table sends
``post_delete`` for each of its entities. The first ``post_delete`` of a model handles all its entities: ``Deletion``
has collected them, so a hundred entities take as many statements as one. Pending events are cancelled, keys are
released (the same primary key may be used again), each entity gets one ``Snapshot``, and events of deletions are
recorded.

Two transactions may delete the same entity, and Django also sends signals for rows that no longer exist. So where a
model has events of deletions, its rows are locked together right before the first statement that deletes from its
table: the transaction that then finds a row is the one that deletes it.

Where writes are captured, those that workers have not performed yet are recorded before the deletion (``settle_with``).
"""

from __future__ import annotations

import contextlib
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, F, Q, Value, When
from django.utils import timezone

from ...db.errors import own_failures
from ...db.savepoints import savepoint_on_query
from ...db.writer import alias_of, from_writer
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...values.json_text import storable
from ..capture import captured_on
from ..changes import Change, Values
from ..declarations import Declared, compared_columns, declared_on
from ..definitions import EventTrigger
from ..failed_evaluation import FailedEvaluation
from ..models import Event, EventStatus, Snapshot, active_key
from ..payload import extra_payload
from ..snapshots import take_snapshot
from ..subscribers import subscribers
from ..timing import announces_cancellation, not_fired, skip_note
from .announced import announce
from .desired_event import NOT_RETRIED, DesiredEvent, evaluate_definition
from .event_row import new_row
from .follow_up import follow_up
from .origin import Origin
from .recorder import refuse_other_database
from .values_before import UNKNOWN, note_deletion, note_locked_row, values_before

ENTITIES_PER_STATEMENT = 200
"""Entities whose rows are written in one statement."""


def _batches(entities: Sequence[models.Model]) -> Iterator[Sequence[models.Model]]:
    return (
        entities[start : start + ENTITIES_PER_STATEMENT] for start in range(0, len(entities), ENTITIES_PER_STATEMENT)
    )


class Deletion:
    """One call of ``delete()`` and the entities that Django announces for it. It is valid during its transaction."""

    def __init__(self, connection: BaseDatabaseWrapper, origin: Any) -> None:
        self._connection = connection
        self._origin = _reference(origin)
        self._announced: dict[type[models.Model], list[models.Model]] = {}
        self._unchecked: dict[type[models.Model], list[models.Model]] = {}
        self._captured: dict[type[models.Model], bool] = {}
        """The captured models whose rows are deleted, and whether their earlier writes are recorded."""
        transaction.on_commit(self, using=connection.alias, robust=True)

    @classmethod
    def of(cls, alias: str, origin: Any) -> Deletion:
        """Return the deletion by the model or queryset ``origin`` on this thread's connection."""
        connection = connections[alias]
        latest = _latest.get(connection)
        if latest is None or origin is None or latest._origin() is not origin or not latest.is_open:
            latest = _latest[connection] = cls(connection, origin)
        return latest

    def __call__(self) -> None:
        """Do nothing. While this hook is registered, the transaction is still open."""

    @property
    def is_open(self) -> bool:
        return any(hook is self for _, hook, *_ in reversed(self._connection.run_on_commit))

    def announce(self, sender: type[models.Model], entity: models.Model) -> None:
        self._announced.setdefault(sender, []).append(entity)
        entity._automation_deletion = self  # type: ignore[attr-defined]
        entity._automation_exists = True  # type: ignore[attr-defined]
        is_captured = bool(captured_on(sender))
        if is_captured:
            self._captured.setdefault(sender, False)
        if _has_deletion_events(sender) or entity.get_deferred_fields():
            self._unchecked.setdefault(sender, []).append(entity)
        if (self._unchecked or is_captured) and self._before_statement not in self._connection.execute_wrappers:
            # At the front: execute_wrapper() removes the last one.
            self._connection.execute_wrappers.insert(0, self._before_statement)

    def pop_deleted(self, sender: type[models.Model]) -> list[models.Model]:
        """Return the announced entities of ``sender``, which are deleted now. Each is returned once."""
        self._unchecked.pop(sender, None)
        self._captured.pop(sender, None)
        self._remove_wrapper()
        return self._announced.pop(sender, [])

    def _before_statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not self.is_open:
            self._unchecked.clear()
            self._captured.clear()
        elif str(sql).startswith("DELETE"):
            quote = self._connection.ops.quote_name
            captured = [each for each in self._captured if quote(each._meta.db_table) in str(sql)]
            for model in [each for each in captured if not self._captured[each]]:
                self._captured[model] = True
                for batch in _batches(self._announced.get(model, ())):
                    for settler in _settlers:
                        settler.before(model, batch, timezone.now())
            for model in [each for each in self._unchecked if quote(each._meta.db_table) in str(sql)]:
                _lock_and_read(model, self._unchecked.pop(model), self._connection.alias)
            if captured:
                announce(self._connection)
        self._remove_wrapper()
        return execute(sql, params, many, context)

    def _remove_wrapper(self) -> None:
        if not self._unchecked and not self._captured and self._before_statement in self._connection.execute_wrappers:
            self._connection.execute_wrappers.remove(self._before_statement)


_latest: weakref.WeakKeyDictionary[BaseDatabaseWrapper, Deletion] = weakref.WeakKeyDictionary()


def _reference(origin: Any) -> Any:
    with contextlib.suppress(TypeError):
        return weakref.ref(origin)
    return lambda: None


def _has_deletion_events(model: type[models.Model]) -> bool:
    return any(EventTrigger.DELETE in declared.definition.triggers for declared in declared_on(model))


@from_writer()
def _lock_and_read(model: type[models.Model], entities: Sequence[models.Model], alias: str) -> None:
    """Lock the rows of ``entities``, mark which of them exist, and read their deferred fields for the snapshots."""
    deferred = {name for entity in entities for name in entity.get_deferred_fields()}
    compared = {name for found in compared_columns(model).values() for name in found.columns}
    for batch in _batches(entities):
        rows = model._base_manager.using(alias).filter(pk__in=[entity.pk for entity in batch]).order_by("pk")
        if _has_deletion_events(model):
            rows = rows.select_for_update()
        found = {values["pk"]: values for values in rows.values("pk", *deferred, *compared)}
        for entity in batch:
            values = found.get(entity.pk)
            entity._automation_exists = values is not None  # type: ignore[attr-defined]
            if values is None:
                continue
            for name in entity.get_deferred_fields():
                setattr(entity, name, values[name])
            if compared:
                note_locked_row(entity, alias, values)


def before_delete(
    sender: type[models.Model], instance: models.Model, using: str, origin: Any = None, **kwargs: Any
) -> None:
    Deletion.of(using, origin).announce(sender, instance)


def on_delete(sender: type[models.Model], instance: models.Model, using: str, **kwargs: Any) -> None:
    refuse_other_database(sender, using)
    deletion: Deletion | None = instance.__dict__.pop("_automation_deletion", None)
    entities = [instance] if deletion is None else deletion.pop_deleted(sender)
    # Events of a parent are handled with the row of the parent, which may stay (keep_parents=True).
    own = [each for each in declared_on(sender) if each.owner._meta.concrete_model is sender._meta.concrete_model]
    now = timezone.now()
    for batch in _batches(entities if own else ()):
        for each in _settlers:
            each.after(sender, batch, now)
        record_deletions(batch, own, now)
    for entity in entities if compared_columns(sender) else ():
        note_deletion(entity, using)


Settle = Callable[[type[models.Model], Sequence[models.Model], datetime], object]


class Settler(NamedTuple):
    """What records captured writes of entities that Django deletes, all of one model: ``before`` the statement that
    deletes them, and ``after`` it, before their deletion is recorded."""

    before: Settle
    after: Settle


_settlers: list[Settler] = []


def settle_with(settler: Settler) -> None:
    """Let ``settler`` record captured writes of entities that Django deletes. Idempotent."""
    if settler not in _settlers:
        _settlers.append(settler)


@from_writer()
def record_deletions(
    entities: Sequence[models.Model],
    declared: Sequence[Declared],
    now: datetime,
    origins: Sequence[Origin | None] | None = None,
) -> None:
    """Record the deletion of ``entities``, all of one model, in the transaction that has deleted them, or in one that
    records captured deletions: ``origins`` tells of each where it comes from."""
    owners = {
        active_key(each.label, each.entity_id_of(entity), each.definition.name): entity
        for entity in entities
        for each in declared
    }
    rows = list(Event.objects.filter(active_key__in=owners))
    deletions = [
        row
        for entity, origin in zip(entities, origins or [None] * len(entities), strict=True)
        for row in _deletion_events(entity, declared, now, origin)
    ]
    snapshots: dict[int, Snapshot] = {}
    for entity in [*(owners[str(row.active_key)] for row in rows), *(row.entity for row in deletions)]:
        if id(entity) not in snapshots:
            snapshots[id(entity)] = Snapshot(taken_at=now, data=take_snapshot(entity))
    Snapshot.objects.bulk_create(snapshots.values())
    if rows:
        _cancel(rows, {row.pk: snapshots[id(owners[str(row.active_key)])] for row in rows}, now)
    _keep_with_history(entities, declared, snapshots)
    for row in deletions:
        row.snapshot = snapshots[id(row.entity)]
    if deletions:
        Event.objects.bulk_create(deletions)
        follow_up(deletions, now, fresh=True)
    by_label: dict[str, list[str]] = {}
    for each in {each.label: each for each in declared}.values():
        by_label[each.label] = [each.entity_id_of(entity) for entity in entities]
    for label, entity_ids in by_label.items():
        for subscriber in subscribers():
            subscriber.entities_deleted(label, entity_ids, now)


def _cancel(rows: Sequence[Event], snapshots: dict[int, Snapshot], now: datetime) -> None:
    """Let the latest rows of entities become history: pending events are cancelled."""
    with_callbacks = [row.pk for row in rows if announces_cancellation(row)]
    was_pending = Q(status__in=[EventStatus.PENDING, EventStatus.PARKED], occurred_at=None)
    # An event that was cancelled just before may still have to call its callbacks.
    is_cancelled = was_pending | Q(status=EventStatus.CANCELLED, wake_at__isnull=False)
    revoke(
        Event.objects.filter(pk__in=[row.pk for row in rows]),
        active_key=None,
        snapshot=Case(*[When(pk=pk, then=Value(snapshot.pk)) for pk, snapshot in snapshots.items()]),
        wake_at=Case(
            When(~Q(pending_notifications=[]) | (is_cancelled & Q(pk__in=with_callbacks)), then=Value(now)),
            default=Value(None),
            output_field=Event._meta.get_field("wake_at"),
        ),
        status=Case(When(was_pending, then=Value(EventStatus.CANCELLED.value)), default=F("status")),
        **_skipped(rows),
    )
    for subscriber in subscribers():
        subscriber.withdrawn(rows, now, "its entity was deleted")
    ring_after_commit(alias_of(Event), Event)


def _keep_with_history(
    entities: Sequence[models.Model], declared: Sequence[Declared], snapshots: dict[int, Snapshot]
) -> None:
    """Give the earlier rows of events that occur again the snapshot, too: a run that waits only now must find them."""
    repeated: dict[str, list[Declared]] = {}
    for each in declared:
        if EventTrigger.UPDATE in each.definition.triggers or each.definition.rearm:
            repeated.setdefault(each.label, []).append(each)
    for label, found in repeated.items():
        kept = {found[0].entity_id_of(entity): snapshots.get(id(entity)) for entity in entities}
        whens = [When(entity_id=key, then=Value(snapshot.pk)) for key, snapshot in kept.items() if snapshot is not None]
        if whens:
            names = [each.definition.name for each in found]
            theirs = Event.objects.filter(entity_type=label, entity_id__in=list(kept), declared_as__in=names)
            theirs.filter(active_key=None, snapshot=None).update(
                snapshot=Case(*whens, default=F("snapshot"), output_field=models.BigIntegerField())
            )


def _skipped(rows: Iterable[Event]) -> dict[str, Any]:
    """Return the change that records which offsets a deletion skips, for events that have occurred."""
    notes = {
        row.pk: skip_note(milestones, "its entity was deleted")
        for row in rows
        if row.status == EventStatus.PROCESSED and (milestones := not_fired(row))
    }
    if not notes:
        return {}
    whens = [When(pk=pk, then=Value(note)) for pk, note in notes.items()]
    return {"error": Case(*whens, default=F("error"), output_field=Event._meta.get_field("error"))}


def _deletion_events(
    entity: models.Model, declared: Iterable[Declared], now: datetime, origin: Origin | None
) -> Iterator[Event]:
    """Yield the unsaved events that the deletion of ``entity`` causes. They need no key: a deletion happens once."""
    if not getattr(entity, "_automation_exists", True):
        return
    for each in declared:
        definition = each.definition
        if EventTrigger.DELETE not in definition.triggers:
            continue
        desired = DesiredEvent(
            each, each.entity_id_of(entity), definition.name, "", now, "", False, EventTrigger.DELETE
        )
        desired.origin = origin
        before: Values | None = UNKNOWN
        if definition.compared_fields:
            before = values_before(each, entity, alias_of(Event)) if origin is None else origin.values_before(each)
        if before is not UNKNOWN and before is not None:
            desired.change = Change(before, None)
        evaluate_definition(desired, entity, raw=False)
        if not (desired.armed or desired.error):
            continue
        row = new_row(desired, now, False, replaces=True)
        row.active_key, row.entity = None, entity
        if row.status == EventStatus.PENDING:
            # The payload is computed now, while rows that the entity refers to may still exist.
            started = time.monotonic()
            with own_failures(connections[alias_of(Event)]) as is_ours:
                try:
                    with savepoint_on_query(alias_of(Event)):
                        row.payload = extra_payload(row, definition)
                except Exception as raised:
                    if is_ours(raised):
                        raise
                    row.failed_evaluation = FailedEvaluation(raised, time.monotonic() - started)
                    what = f"The payload function of {definition!r} raised{NOT_RETRIED}"
                    row.set_parked(storable(f"{what}\n{traceback.format_exc()}"), now)
        yield row
