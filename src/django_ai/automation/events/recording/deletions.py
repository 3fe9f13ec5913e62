"""Deletions: what the deletion of entities does to their event rows, for all of one model at once.

Django announces every entity of a deletion (``pre_delete``), then empties table by table, and after each table says of
each of its entities that it is gone (``post_delete``). So the first of these speaks for all of its model: ``Deletion``
has collected them, and what is written for a hundred takes as many statements as for one. What is pending is cancelled,
keys are freed (the same primary key may come again), each entity leaves one ``Snapshot``, and events of deletions are
recorded.

Two may delete one entity at once, and Django announces what is not there any more, too. So where a model has events of
deletions its rows are locked, all at once, right before the first statement that deletes from its table: who finds a
row then is who deletes it.
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
from ..definitions import Declared, EventTrigger, declared_on
from ..evaluation import extra_payload
from ..failed_evaluation import FailedEvaluation
from ..models import Event, EventStatus, Snapshot, active_key
from ..snapshots import take_snapshot
from ..subscribers import subscribers
from ..timing import hears, not_fired, skip_note
from .desired_event import FOR_GOOD, DesiredEvent, ask, condition_of
from .event_row import new_row
from .follow_up import follow
from .recorder import refuse_other_database

TOGETHER = 200
"""Entities whose rows are written in one statement."""


def _batches(entities: Sequence[models.Model]) -> Iterator[Sequence[models.Model]]:
    return (entities[start : start + TOGETHER] for start in range(0, len(entities), TOGETHER))


class Deletion:
    """One call of ``delete()`` and all that it announces. It lives as long as its transaction."""

    def __init__(self, connection: BaseDatabaseWrapper, origin: Any) -> None:
        self._connection = connection
        self._origin = _reference(origin)
        self._announced: dict[type[models.Model], list[models.Model]] = {}
        self._to_find: dict[type[models.Model], list[models.Model]] = {}
        transaction.on_commit(self, using=connection.alias, robust=True)

    @classmethod
    def of(cls, alias: str, origin: Any) -> Deletion:
        """Return the deletion that the model or queryset ``origin`` makes over this thread's connection."""
        connection = connections[alias]
        latest = _latest.get(connection)
        if latest is None or origin is None or latest._origin() is not origin or not latest.is_open:
            latest = _latest[connection] = cls(connection, origin)
        return latest

    def __call__(self) -> None:
        """Do nothing: that the hook is still to come says that the transaction is still this one."""

    @property
    def is_open(self) -> bool:
        return any(hook is self for _, hook, *_ in reversed(self._connection.run_on_commit))

    def announce(self, sender: type[models.Model], entity: models.Model) -> None:
        self._announced.setdefault(sender, []).append(entity)
        entity._automation_deletion = self  # type: ignore[attr-defined]
        entity._automation_is_there = True  # type: ignore[attr-defined]
        if _has_deletions(sender) or entity.get_deferred_fields():
            self._to_find.setdefault(sender, []).append(entity)
            if self._before not in self._connection.execute_wrappers:
                # In front: who adds one of his own takes away the last.
                self._connection.execute_wrappers.insert(0, self._before)

    def take(self, sender: type[models.Model]) -> list[models.Model]:
        """Return the entities of ``sender`` that nobody has taken yet: they are gone now."""
        self._to_find.pop(sender, None)
        self._let_go()
        return self._announced.pop(sender, [])

    def _before(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not self.is_open:
            self._to_find.clear()
        elif str(sql).startswith("DELETE"):
            quote = self._connection.ops.quote_name
            for model in [each for each in self._to_find if quote(each._meta.db_table) in str(sql)]:
                _find(model, self._to_find.pop(model), self._connection.alias)
        self._let_go()
        return execute(sql, params, many, context)

    def _let_go(self) -> None:
        if not self._to_find and self._before in self._connection.execute_wrappers:
            self._connection.execute_wrappers.remove(self._before)


_latest: weakref.WeakKeyDictionary[BaseDatabaseWrapper, Deletion] = weakref.WeakKeyDictionary()


def _reference(origin: Any) -> Any:
    with contextlib.suppress(TypeError):
        return weakref.ref(origin)
    return lambda: None


def _has_deletions(model: type[models.Model]) -> bool:
    return any(EventTrigger.DELETE in declared.definition.triggers for declared in declared_on(model))


@from_writer()
def _find(model: type[models.Model], entities: Sequence[models.Model], alias: str) -> None:
    """Say of ``entities`` whether they are there, so that nobody else deletes them, and read what was deferred: their
    snapshots need it."""
    names = {name for entity in entities for name in entity.get_deferred_fields()}
    for some in _batches(entities):
        rows = model._base_manager.using(alias).filter(pk__in=[entity.pk for entity in some]).order_by("pk")
        if _has_deletions(model):
            rows = rows.select_for_update()
        found = {values["pk"]: values for values in rows.values("pk", *names)}
        for entity in some:
            values = found.get(entity.pk)
            entity._automation_is_there = values is not None  # type: ignore[attr-defined]
            for name in entity.get_deferred_fields() if values else ():
                setattr(entity, name, values[name])  # type: ignore[index]


def before_delete(
    sender: type[models.Model], instance: models.Model, using: str, origin: Any = None, **kwargs: Any
) -> None:
    Deletion.of(using, origin).announce(sender, instance)


def on_delete(sender: type[models.Model], instance: models.Model, using: str, **kwargs: Any) -> None:
    refuse_other_database(sender, using)
    deletion: Deletion | None = instance.__dict__.pop("_automation_deletion", None)
    entities = [instance] if deletion is None else deletion.take(sender)
    # Those of a parent go with its own row, which may stay (keep_parents=True).
    mine = [each for each in declared_on(sender) if each.owner._meta.concrete_model is sender._meta.concrete_model]
    now = timezone.now()
    for some in _batches(entities if mine else ()):
        _record(some, mine, now)


@from_writer()
def _record(entities: Sequence[models.Model], declared: Sequence[Declared], now: datetime) -> None:
    """Record that ``entities``, all of one model, are gone, in the transaction that has deleted them."""
    owners = {
        active_key(each.label, each.entity_id_of(entity), each.definition.name): entity
        for entity in entities
        for each in declared
    }
    rows = list(Event.objects.filter(active_key__in=owners))
    deletions = [row for entity in entities for row in _deletions_of(entity, declared, now)]
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
        follow(deletions, now, fresh=True)
    by_label: dict[str, list[str]] = {}
    for each in {each.label: each for each in declared}.values():
        by_label[each.label] = [each.entity_id_of(entity) for entity in entities]
    for label, entity_ids in by_label.items():
        for listener in subscribers():
            listener.entities_deleted(label, entity_ids, now)


def _cancel(rows: Sequence[Event], snapshots: dict[int, Snapshot], now: datetime) -> None:
    """Let the latest rows of entities become history: what is pending is cancelled."""
    audible = [row.pk for row in rows if hears(row, CANCELLED)]
    was_pending = Q(status__in=[EventStatus.PENDING, EventStatus.PARKED], occurred_at=None)
    revoke(
        Event.objects.filter(pk__in=[row.pk for row in rows]),
        active_key=None,
        snapshot=Case(*[When(pk=pk, then=Value(snapshot.pk)) for pk, snapshot in snapshots.items()]),
        wake_at=Case(
            When(~Q(pending_notifications=[]) | (was_pending & Q(pk__in=audible)), then=Value(now)),
            default=Value(None),
            output_field=Event._meta.get_field("wake_at"),
        ),
        status=Case(When(was_pending, then=Value(EventStatus.CANCELLED.value)), default=F("status")),
        **_skipped(rows),
    )
    for listener in subscribers():
        listener.withdrawn(rows, now, "its entity was deleted")
    ring_after_commit(alias_of(Event), Event)


def _skipped(rows: Iterable[Event]) -> dict[str, Any]:
    """Return what is written to say which later offsets a deletion drops, of events that have occurred."""
    notes = {
        row.pk: skip_note(milestones, "its entity was deleted")
        for row in rows
        if row.status == EventStatus.PROCESSED and (milestones := not_fired(row))
    }
    if not notes:
        return {}
    whens = [When(pk=pk, then=Value(note)) for pk, note in notes.items()]
    return {"error": Case(*whens, default=F("error"), output_field=Event._meta.get_field("error"))}


def _deletions_of(entity: models.Model, declared: Iterable[Declared], now: datetime) -> Iterator[Event]:
    """Yield the unsaved events that the deletion of ``entity`` makes occur. They have no key: nothing can ask for them
    twice."""
    if not getattr(entity, "_automation_is_there", True):
        return
    for each in declared:
        definition = each.definition
        if EventTrigger.DELETE not in definition.triggers:
            continue
        wanted = DesiredEvent(each, each.entity_id_of(entity), definition.name, "", now, "", False, EventTrigger.DELETE)
        ask(wanted, entity, raw=False)
        if not (wanted.armed or wanted.error):
            continue
        row = new_row(wanted, now, False, again=True)
        row.active_key, row.entity = None, entity
        if row.status == EventStatus.PENDING:
            # The payload is asked for now, while what the entity belongs to may still be there.
            started = time.monotonic()
            with own_failures(connections[alias_of(Event)]) as is_ours:
                try:
                    with condition_of(entity):
                        row.payload = extra_payload(row, definition)
                except Exception as raised:
                    if is_ours(raised):
                        raise
                    row.failed_evaluation = FailedEvaluation(raised, time.monotonic() - started)
                    what = f"The payload function of {definition!r} raised{FOR_GOOD}"
                    row.set_parked(storable(f"{what}\n{traceback.format_exc()}"), now)
        yield row
