"""What a ``save()`` or ``delete()`` of a captured model does with the outbox rows of its entity.

It records its events itself, in its own transaction, so the rows that its statements have caused are deleted there.
Rows of earlier transactions that no worker has performed yet are recorded first: each write is recorded in its turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db import connections, models

from ....db.writer import alias_of
from ...capture import captured_on, not_recorded_by, root_id_of, root_of
from ...declarations import declared_on
from ...models import CapturedWrite
from .outbox import Taken, take
from .replay import Names, read_entities, replay_or_park, replay_own
from .transactions import writes_of


def before_save(entity: models.Model, alias: str, now: datetime) -> None:
    """Record what the open transaction has written to the entity without a signal before this save."""
    writes = writes_of(connections[alias])
    if writes is None or not writes.is_bulk or entity.pk is None or not captured_on(type(entity)):
        return
    if root_id := _stored_root_id(entity):
        replay_own([(root_of(type(entity))._meta.label_lower, root_id)], alias, now)


def _stored_root_id(entity: models.Model) -> str:
    """Return the key of the entity in its root table; "" if a child has none yet."""
    root = root_of(type(entity))
    link = entity._meta.get_ancestor_link(root)
    return root_id_of(entity) if link is None or getattr(entity, link.attname) is not None else ""


def settle_save(entity: models.Model, alias: str, now: datetime, *, raw: bool) -> None:
    """Take the outbox rows of the entity that was just saved, and record those of earlier transactions. ``raw``: a
    fixture is loaded, which fires nothing."""
    model = type(entity)
    root, root_id = root_of(model), root_id_of(entity)
    taken = take(root, [root_id], alias)
    writes = writes_of(connections[alias])
    if writes is not None:
        writes.saved.add((root._meta.label_lower, root_id))
    _record_foreign(taken, model, alias, now)
    if not_recorded_by(model) and not raw:
        _record_for_others(taken, model, alias, now)


def before_deletions(model: type[models.Model], entities: Sequence[models.Model], now: datetime) -> None:
    """Record what the open transaction has written to the entities without a signal before it deletes them."""
    alias = alias_of(CapturedWrite)
    writes = writes_of(connections[alias])
    if writes is not None and writes.is_bulk and captured_on(model):
        label = root_of(model)._meta.label_lower
        replay_own([(label, root_id_of(each)) for each in entities], alias, now)


def settle_deletions(model: type[models.Model], entities: Sequence[models.Model], now: datetime) -> None:
    """Take the outbox rows of the entities that were just deleted, and record those of earlier transactions."""
    if not captured_on(model):
        return
    alias = alias_of(CapturedWrite)
    taken = take(root_of(model), [root_id_of(each) for each in entities], alias)
    _record_foreign(taken, model, alias, now)
    if not_recorded_by(model):
        _record_for_others(taken, model, alias, now)


def _record_foreign(taken: Taken, model: type[models.Model], alias: str, now: datetime) -> None:
    foreign = taken.foreign
    if not foreign:
        return
    ids = {row.entity_id for row in foreign}
    root = root_of(model)
    present, _ = read_entities(root, ids, alias)
    rows = [row for row in taken.rows if row.entity_id in ids]
    replay_or_park(root, rows, present, alias, now, only={row.pk for row in foreign})


def _record_for_others(taken: Taken, model: type[models.Model], alias: str, now: datetime) -> None:
    """Record what this write is to events that only other classes list: the save or deletion does not record them."""
    rows = [row for row in taken.rows if row.pk in taken.own]
    if not rows:
        return
    mine: Names = {(each.label, each.definition.name) for each in declared_on(model)}
    root = root_of(model)
    present, _ = read_entities(root, {row.entity_id for row in rows}, alias)
    replay_or_park(root, rows, present, alias, now, own=taken.own, without=mine)
