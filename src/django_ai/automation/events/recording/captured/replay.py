"""Replay: record the events of captured writes, write by write, as a ``save()`` at that time would have.

The writes of one entity are recorded in their order, which is the order of the keys of its outbox rows: a transaction
that writes to an entity holds its lock until the commit. Writes of several entities are recorded together, wave by
wave: first the first write of each.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db import connections, models, transaction

from ....db.errors import own_failures
from ....queues.causation import CurrentRun, running
from ....values.text import trace_of
from ...capture import Model, Reader, concrete, readers_of, root_id_of, roots, tables_by_label
from ...changes import Values
from ...declarations import Declared, compared_columns
from ...definitions import EventTrigger
from ...models import CapturedWrite, WriteOperation
from ..deletions import record_deletions
from ..origin import Origin
from ..recorder import record_captured
from ..values_before import note_deletion, note_origin, values_before
from .outbox import put_back, take
from .states import Write, instance_of, state_of, writes_of

logger = logging.getLogger("django_ai.automation")

Names = Collection[tuple[str, str]]
"""Events, by the label of their owner and the name of their definition."""


def read_entities(
    root: Model, ids: Collection[str], alias: str, *, lock: bool = False
) -> tuple[dict[str, list[models.Model]], set[str]]:
    """Return the instances of the entities ``ids`` of every class that reads them, and the ids of those that others
    have locked (with ``lock``: the instances are locked)."""
    found: dict[str, list[models.Model]] = {}
    busy: set[str] = set()
    keys = _keys(root, ids)
    for model in dict.fromkeys(concrete(reader.model) for reader in readers_of(root)):
        rows: models.QuerySet[Any] = model._base_manager.using(alias).order_by("pk")
        # The key of the root is the key of its children: a check refuses other children.
        wanted = rows.filter(pk__in=list(keys))
        present = {root_id_of(entity): entity for entity in (_locking(wanted) if lock else wanted)}
        for entity_id, entity in present.items():
            found.setdefault(entity_id, []).append(entity)
        missing = [key for key, entity_id in keys.items() if entity_id not in present]
        if lock and missing and connections[alias].features.has_select_for_update_skip_locked:
            busy |= {keys[pk] for pk in rows.filter(pk__in=missing).values_list("pk", flat=True) if pk in keys}
    return found, busy


def _locking(rows: models.QuerySet[Any]) -> models.QuerySet[Any]:
    features = connections[rows.db].features
    return rows.select_for_update(
        skip_locked=features.has_select_for_update_skip_locked,
        no_key=features.has_select_for_no_key_update,  # others may insert rows that refer to these
    )


def _keys(root: Model, ids: Iterable[str]) -> dict[Any, str]:
    """Return the primary keys with the given strings. One that no longer fits the type of the key is left out."""
    keys = {}
    for entity_id in ids:
        try:
            keys[root._meta.pk.to_python(entity_id)] = entity_id
        except ValidationError:
            continue
    return keys


def replay(
    root: Model,
    rows: Sequence[CapturedWrite],
    present: Mapping[str, Sequence[models.Model]],
    alias: str,
    now: datetime,
    *,
    only: Collection[int] | None = None,
    own: Collection[int] = (),
    without: Names = (),
) -> None:
    """Record the events of the writes that ``rows`` stand for, in the open transaction.

    Args:
        root: The root of the entities.
        rows: All outbox rows of these entities, in order.
        present: The instances of the entities as they are after the last write.
        alias: The database.
        now: The current time.
        only: Keys of the rows to record. Default: all.
        own: Keys of the rows that the open transaction has written itself.
        without: Events that are recorded by the caller.
    """
    tables = tables_by_label(root)
    by_entity: dict[str, list[CapturedWrite]] = {}
    for row in rows:
        by_entity.setdefault(row.entity_id, []).append(row)
    histories = [
        [
            write
            for write in writes_of(mine, tables, state_of(present.get(entity_id, ())), alias)
            if only is None or write.row.pk in only
        ]
        for entity_id, mine in by_entity.items()
    ]
    for number in range(max(map(len, histories), default=0)):
        writes = [history[number] for history in histories if number < len(history)]
        _record(writes, root, own, without, alias, now)


def replay_or_park(
    root: Model,
    rows: Sequence[CapturedWrite],
    present: Mapping[str, Sequence[models.Model]],
    alias: str,
    now: datetime,
    *,
    only: Collection[int] | None = None,
    own: Collection[int] = (),
    without: Names = (),
) -> None:
    """``replay`` inside a save, a deletion or a bulk write of the project, which must not fail because of it: rows that
    cannot be recorded are parked. A database failure is raised."""
    with own_failures(connections[alias]) as is_ours:
        try:
            with transaction.atomic(using=alias):
                replay(root, rows, present, alias, now, only=only, own=own, without=without)
        except Exception as error:
            if is_ours(error):
                raise
            failed = [row for row in rows if only is None or row.pk in only]
            logger.exception("Captured writes of %s could not be recorded", root._meta.label)
            put_back(failed, trace_of(error), now, alias)


class _Group(NamedTuple):
    """What the writes that are recorded together have in common."""

    reader: Reader
    declared: tuple[Declared, ...]
    trigger: EventTrigger
    cause: tuple[str, int]


def _record(
    writes: Sequence[Write], root: Model, own: Collection[int], without: Names, alias: str, now: datetime
) -> None:
    groups: dict[_Group, list[tuple[models.Model, models.Model | None, Origin]]] = {}
    deleted: list[tuple[models.Model, Model]] = []
    for write in writes:
        is_own, done = write.row.pk in own, set(without)
        for reader in readers_of(root):
            entity, before = _instances(reader, write, alias)
            if entity is None:
                continue
            if is_own and write.operation == WriteOperation.DELETE:
                deleted.append((entity, write.table))
            values = partial(_own_values, write, entity, alias) if is_own else write.values_before
            origin = Origin(None if is_own else write.transaction, write.row.written_at, values)
            for trigger, declared in _triggered(reader, write, done):
                group = _Group(reader, declared, trigger, (write.row.caused_by, write.row.depth))
                groups.setdefault(group, []).append((entity, before, origin))
                done |= {(each.label, each.definition.name) for each in declared}
    for group, found in groups.items():
        label, depth = group.cause
        with running(CurrentRun(label, depth, "") if label else None):
            if group.trigger is EventTrigger.DELETE:
                entities, _, origins = zip(*found, strict=True)
                record_deletions(entities, group.declared, now, origins)
            else:
                record_captured(found, group.declared, group.trigger, now)
    for entity, table in deleted:
        note_deletion(entity, alias, table)


def _own_values(write: Write, entity: models.Model, alias: str, declared: Declared) -> Values | None:
    """Return the values that an event compares before the open transaction, which has made the write, and remember
    them: its next save of the entity finds only what the write has left."""
    columns = compared_columns(type(entity))[concrete(declared.owner)].columns
    note_origin(entity, declared, alias, write.columns_before(concrete(declared.owner), columns))
    return values_before(declared, entity, alias)


def _instances(reader: Reader, write: Write, alias: str) -> tuple[models.Model | None, models.Model | None]:
    """Return the entity after the write, and before it; of a deletion, the deleted entity. None: there is none."""
    if write.table not in reader.tables:
        return None, None
    if write.operation == WriteOperation.DELETE:
        return instance_of(reader, write.before, alias), None
    return instance_of(reader, write.after, alias), instance_of(reader, write.before, alias)


def _triggered(reader: Reader, write: Write, done: Names) -> Iterable[tuple[EventTrigger, tuple[Declared, ...]]]:
    """Yield what the write is to the events of the reader: the creation of the entity is the insertion into the table
    of the class that owns the event, and so is its deletion."""
    todo = [each for each in reader.declared if (each.label, each.definition.name) not in done]
    mine = tuple(each for each in todo if concrete(each.owner) is write.table)
    others = tuple(each for each in todo if each not in mine)
    if mine:
        yield EventTrigger(_TRIGGERS[write.operation]), mine
    if others and write.operation != WriteOperation.DELETE:
        yield EventTrigger.UPDATE, others


_TRIGGERS = {
    WriteOperation.INSERT.value: EventTrigger.CREATE,
    WriteOperation.UPDATE.value: EventTrigger.UPDATE,
    WriteOperation.DELETE.value: EventTrigger.DELETE,
}


def replay_own(entities: Iterable[tuple[str, str]], alias: str, now: datetime) -> None:
    """Record what the open transaction itself has written to ``entities`` (root label and key) without a signal.

    What others have written to these entities before, and no worker has recorded yet, is recorded first: each write in
    its turn.
    """
    by_root: dict[str, list[str]] = {}
    for label, entity_id in entities:
        by_root.setdefault(label, []).append(entity_id)
    for label, ids in by_root.items():
        root = roots().get(label)
        if root is None:
            continue
        taken = take(root, ids, alias, only_written=True)
        if taken.rows:
            present, _ = read_entities(root, {row.entity_id for row in taken.rows}, alias)
            replay_or_park(root, taken.rows, present, alias, now, own=taken.own)


def replay_pending(root: Model, ids: Collection[str], alias: str, now: datetime) -> set[str]:
    """Record all captured writes of the entities ``ids``, in the open transaction. Return the ids of those that others
    have locked: their rows stay.

    Locks the entities before their outbox rows, as everyone does who writes to an entity: no deadlock, and what is read
    is the state after the last write.
    """
    present, busy = read_entities(root, ids, alias, lock=True)
    free = [each for each in ids if each not in busy]
    taken = take(root, free, alias)
    if taken.rows:
        replay(root, taken.rows, present, alias, now)
    return busy
