"""Deletions: what the deletion of entities does to their event rows, for all entities of one model at once.

Django sends ``pre_delete`` for every entity of a deletion, then deletes table by table, and after each table sends
``post_delete`` for each of its entities. The first ``post_delete`` of a model handles all its entities: ``Deletion``
has collected them, so a hundred entities take as many statements as one. Pending events are cancelled, keys are
released (the same primary key may be used again), each entity gets one ``Snapshot``, and events of deletions are
recorded.

Two transactions may delete the same entity, and Django also sends signals for rows that no longer exist. So where a
model has events of deletions, its rows are locked together right before the first statement that deletes from its
table: the transaction that then finds a row is the one that deletes it.
"""

from __future__ import annotations

import contextlib
import time
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, F, Q, Value, When
from django.utils import timezone

from ...db.errors import own_failures
from ...db.writer import alias_of, from_writer
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...values.json_text import storable
from ..callbacks import CANCELLED
from ..declarations import Declared, declared_on
from ..definitions import EventTrigger
from ..failed_evaluation import FailedEvaluation
from ..models import Event, EventStatus, Snapshot, active_key
from ..payload import extra_payload
from ..snapshots import take_snapshot
from ..subscribers import subscribers
from ..timing import has_callback, not_fired, skip_note
from .desired_event import NOT_RETRIED, DesiredEvent, evaluate_definition, savepoint_on_query
from .event_row import new_row
from .follow_up import follow_up
from .recorder import refuse_other_database

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
        if _has_deletion_events(sender) or entity.get_deferred_fields():
            self._unchecked.setdefault(sender, []).append(entity)
            if self._before_statement not in self._connection.execute_wrappers:
                # At the front: execute_wrapper() removes the last one.
                self._connection.execute_wrappers.insert(0, self._before_statement)

    def pop_deleted(self, sender: type[models.Model]) -> list[models.Model]:
        """Return the announced entities of ``sender``, which are deleted now. Each is returned once."""
        self._unchecked.pop(sender, None)
        self._remove_wrapper()
        return self._announced.pop(sender, [])

    def _before_statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not self.is_open:
            self._unchecked.clear()
        elif str(sql).startswith("DELETE"):
            quote = self._connection.ops.quote_name
            for model in [each for each in self._unchecked if quote(each._meta.db_table) in str(sql)]:
                _lock_and_read(model, self._unchecked.pop(model), self._connection.alias)
        self._remove_wrapper()
        return execute(sql, params, many, context)

    def _remove_wrapper(self) -> None:
        if not self._unchecked and self._before_statement in self._connection.execute_wrappers:
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
    names = {name for entity in entities for name in entity.get_deferred_fields()}
    for batch in _batches(entities):
        rows = model._base_manager.using(alias).filter(pk__in=[entity.pk for entity in batch]).order_by("pk")
        if _has_deletion_events(model):
            rows = rows.select_for_update()
        found = {values["pk"]: values for values in rows.values("pk", *names)}
        for entity in batch:
            values = found.get(entity.pk)
            entity._automation_exists = values is not None  # type: ignore[attr-defined]
            for name in entity.get_deferred_fields() if values else ():
                setattr(entity, name, values[name])  # type: ignore[index]


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
        _record(batch, own, now)


@from_writer()
def _record(entities: Sequence[models.Model], declared: Sequence[Declared], now: datetime) -> None:
    """Record the deletion of ``entities``, all of one model, in the transaction that has deleted them."""
    owners = {
        active_key(each.label, each.entity_id_of(entity), each.definition.name): entity
        for entity in entities
        for each in declared
    }
    rows = list(Event.objects.filter(active_key__in=owners))
    deletions = [row for entity in entities for row in _deletion_events(entity, declared, now)]
    snapshots: dict[int, Snapshot] = {}
    for entity in [*(owners[str(row.active_key)] for row in rows), *(row.entity for row in deletions)]:
        if id(entity) not in snapshots:
            snapshots[id(entity)] = Snapshot(taken_at=now, data=take_snapshot(entity))
    Snapshot.objects.bulk_create(snapshots.values())
    if rows:
        _cancel(rows, {row.pk: snapshots[id(owners[str(row.active_key)])] for row in rows}, now)
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
    with_callbacks = [row.pk for row in rows if has_callback(row, CANCELLED)]
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


def _deletion_events(entity: models.Model, declared: Iterable[Declared], now: datetime) -> Iterator[Event]:
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
                    with savepoint_on_query(entity):
                        row.payload = extra_payload(row, definition)
                except Exception as raised:
                    if is_ours(raised):
                        raise
                    row.failed_evaluation = FailedEvaluation(raised, time.monotonic() - started)
                    what = f"The payload function of {definition!r} raised{NOT_RETRIED}"
                    row.set_parked(storable(f"{what}\n{traceback.format_exc()}"), now)
        yield row
