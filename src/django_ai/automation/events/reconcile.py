"""Finds what changed behind Django's back: dates set with ``QuerySet.update``, rows made with ``bulk_create``, and what
a new deployment wants of events that were recorded before it.

Only entities whose date is near are looked at, by their own date column: what is far away is found when it comes near,
and a date that was put off is noticed when the event wakes, because it is read from the entity again. So the work
follows what is due soon, not how much there is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice

from django.db import connections, models, transaction

from ..conf import conf
from ..queues.clock import shift
from ..queues.database import is_database_failure
from ..queues.lease import alias_of
from .definitions import Declared, declared_on, declaring_models
from .listeners import listeners
from .models import Event, EventStatus, active_key
from .recorder import record
from .timing import next_wake, reach_of, too_late

logger = logging.getLogger("django_ai.automation")

CHUNK = 500


def reconcile_dates(now: datetime) -> int:
    """Bring the rows of scheduled events near ``now`` in line with their entities; return how many were written.

    A model whose entities cannot be read or judged does not stop the others: its error is raised after them. A
    database failure is raised at once.
    """
    written, failed = 0, None
    for model in declaring_models():
        for declared in declared_on(model):
            if declared.owner is not model or not declared.definition.date_field:
                continue
            try:
                written += _reconcile(model, declared, now)
            except Exception as error:
                if is_database_failure(error, connections[alias_of(Event)]):
                    raise
                logger.exception("Reconciling %r of %s failed", declared.definition.name, declared.label)
                failed = failed or error
    if failed is not None:
        raise failed
    return written


def _window(declared: Declared, now: datetime) -> tuple[datetime, datetime]:
    """Return between which dates an entity's event may want something until the next look."""
    reaches = [shift(now, offset) - now for offset in reach_of(declared.definition.name)] + [timedelta(0)]
    return (
        now - declared.definition.grace - max(reaches),
        now + conf().RECONCILE_HORIZON - min(reaches),
    )


def _reconcile(model: type[models.Model], declared: Declared, now: datetime) -> int:
    first, last = _window(declared, now)
    name = str(declared.definition.date_field)
    if isinstance(model._meta.get_field(name), models.DateField) and not isinstance(
        model._meta.get_field(name), models.DateTimeField
    ):
        span = (first.date(), last.date() + timedelta(days=1))
    else:
        span = (first, last)
    # Fresh wakes come from the entities themselves; what has a row and is past it is not looked at again.
    entities = model._base_manager.using(alias_of(model)).filter(**{f"{name}__range": span}).order_by("pk")
    written, after = 0, None
    while chunk := list(islice((entities.filter(pk__gt=after) if after is not None else entities)[:CHUNK], CHUNK)):
        after = chunk[-1].pk
        with transaction.atomic(using=alias_of(Event)):
            written += record(chunk, now, read_before=True) + _rewake(chunk, declared, now)
    return written


def _rewake(entities: Sequence[models.Model], declared: Declared, now: datetime) -> int:
    """Give rows their timer for offsets that were not wanted when they were recorded, and plan what is planned for
    them."""
    keys = [active_key(declared.label, declared.entity_id_of(entity), declared.definition.name) for entity in entities]
    live = [EventStatus.PENDING, EventStatus.PROCESSED]
    rows = list(Event.objects.filter(active_key__in=keys, status__in=live, lease=None, attempt=0))
    written = 0
    for row in rows:
        late = too_late(row, declared.definition, now)
        if late and (row.wake_at is None or row.wake_at > now):
            # Nothing is overdue, so these offsets are new: what was long past when they came is not made up for.
            seen = Event.objects.filter(pk=row.pk, seq=row.seq, lease=None)
            seen.update(fired=[*row.fired, *late])
            row.fired = [*row.fired, *late]
        wake_at = next_wake(row, declared.definition, now)
        if wake_at is not None and (row.wake_at is None or wake_at < row.wake_at):
            written += Event.objects.filter(pk=row.pk, seq=row.seq, lease=None).update(wake_at=wake_at)
    for listener in listeners():
        listener.plan(rows, now, fresh=False)
    return written
