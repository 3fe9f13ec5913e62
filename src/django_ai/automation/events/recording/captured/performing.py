"""A worker's path for rows of the outbox: lock the entities, take all their rows, record their events, commit.

All rows of one entity are performed together, also if several workers have leased them: they are taken under the lock
of the entity, so each is recorded once, in its turn. No worker waits for that lock: the rows of an entity that others
have locked are due again a little later, because a transaction of the project may hold it for minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django.db import models, transaction

from ....conf import conf
from ....db.writer import alias_of
from ....exceptions import LeaseLostError, UnknownEventError
from ....queues import registry
from ....queues.held_leases import keep_lease_for
from ....queues.lease import release
from ....queues.parking import park as park_row
from ....queues.parking import reason_of
from ....queues.wakeable import Behaviour
from ....values.clock import Clock
from ...capture import root_of, roots, tables_by_label
from ...entity_ids import entity_id_of
from ...models import CapturedWrite
from ..deletions import Settler, settle_with
from .hearing import listen
from .replay import replay_pending
from .saving import before_deletions, settle_deletions

BUSY_DELAY = timedelta(seconds=0.5)
"""How long after a look at a locked entity its rows are due again."""


def use_captured_writes() -> None:
    """Perform captured writes in this process, and hear its own. Called for each captured model; idempotent."""
    registry.register(
        CapturedWrite,
        Behaviour(perform=lambda row, clock: perform_writes([row], clock), perform_batch=perform_writes, park=park_row),
    )
    settle_with(Settler(before_deletions, settle_deletions))
    listen()


def perform_writes(rows: Sequence[CapturedWrite], clock: Clock) -> None:
    """Record the events of the writes that ``rows`` stand for, and delete the rows. The caller holds their leases."""
    keep_lease_for(conf().STEP_TIMEOUT)
    now = clock()
    ids: dict[str, list[str]] = {}
    for row in rows:
        if is_known(row):
            ids.setdefault(row.entity_type, []).append(row.entity_id)
        else:
            with suppress(LeaseLostError):
                error = UnknownEventError(
                    f"{row}: no model of this code that has this table captures its writes. If this is meant, drop the "
                    "triggers: manage.py automation_capture writes the migration."
                )
                row.park(reason_of(row, error), clock, awaiting_deploy=True)
    for label, found in ids.items():
        alias = alias_of(CapturedWrite)
        with transaction.atomic(using=alias):
            busy = replay_pending(roots()[label], dict.fromkeys(found), alias, now)
        for row in rows:
            if row.entity_type == label and row.entity_id in busy:
                release(row, clock() + BUSY_DELAY)


def is_known(row: CapturedWrite) -> bool:
    """Return whether this code captures writes to the table of the row."""
    root = roots().get(row.entity_type)
    return root is not None and row.model in tables_by_label(root)


def record_pending(model: type[models.Model], pks: Sequence[Any], now: datetime) -> set[Any]:
    """Record the captured writes of these entities before the reconciliation compares them, in the open transaction.
    Return the primary keys of those that others have locked."""
    root = root_of(model)
    ids = {entity_id_of(root, pk): pk for pk in pks}  # the key of a child is that of its root
    alias = alias_of(CapturedWrite)
    rows = CapturedWrite.objects.using(alias).filter(entity_type=root._meta.label_lower, entity_id__in=list(ids))
    waiting = set(rows.values_list("entity_id", flat=True))
    busy = replay_pending(root, waiting, alias, now) if waiting else set()
    return {ids[entity_id] for entity_id in busy}
