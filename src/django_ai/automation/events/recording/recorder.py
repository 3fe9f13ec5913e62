"""The recorder: what each save and delete of an entity does to its event rows, in the same transaction.

The first save inserts a PENDING row for each definition (one statement); later saves read them (one statement) and
write only what changed: a date that moved, a condition that flipped, a field that is watched. Where a definition lets
its event occur again, the old row becomes history and a new one takes its place (``_renew``). An immediate event whose
condition is true becomes due at once, and ``occurrence.CommitBatch`` makes it occur after the commit; if the process
dies in between, a worker does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import models, transaction
from django.db.models import Case, F, Value, When

from ...db.inserts import insert_ignoring
from ...db.writer import alias_of, from_writer
from ...exceptions import AutomationError, WrongDatabaseError
from ...queues.lease import revoke
from ..definitions import Declared, EventTrigger, declared_on
from ..models import Event, EventStatus
from ..subscribers import subscribers
from ..timing import (
    not_fired,
    skip_note,
)
from .desired_event import DesiredEvent, desired_events, mark_existing, read_from_table
from .entity_state import before_save
from .event_row import apply_desired, differs, needs_row, new_row, occurs_again
from .follow_up import follow, report_failures

TRIES = 20


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
    wanted = [each for entity in entities for each in desired_events(entity, raw, update_fields, write, only)]
    if not wanted:
        return 0
    with transaction.atomic(using=alias_of(Event), savepoint=False):
        if created:
            return _insert(wanted, now, raw, reborn=not raw)
        known = _known(wanted)
        if update_fields is not None or read_before or any(each.definition.watch_fields for each in wanted):
            doubtful = {each.entity_id for each in wanted if each.key not in known or differs(known[each.key], each)}
            if not doubtful:
                if not read_before:
                    report_failures([(known[each.key], each) for each in wanted])
                return 0
            # The instance may hold values that this save left out, that were changed since it was read, or that the
            # database rounds; what counts is what is in the table.
            fresh = [read_from_table(entity, lock=read_before) for entity in entities if _ids_of(entity) & doubtful]
            present = [entity for entity in fresh if entity is not None]
            wanted = [each for entity in present for each in desired_events(entity, raw, None, write, only)]
            known = _known(wanted)
        unseen = [each for each in wanted if each.key not in known]
        if read_before:  # nobody saves: an immediate event waits for the next save
            unseen = [each for each in unseen if each.definition.is_scheduled]
        if unseen and not raw:
            mark_existing(unseen, None if read_before else before_save(entities[0]), now, saved=not read_before)
        written = _insert(unseen, now, raw, reborn=False)
        return written + _change([(known[each.key], each) for each in wanted if each.key in known], now)


def _ids_of(entity: models.Model) -> set[str]:
    return {declared.entity_id_of(entity) for declared in declared_on(type(entity))}


def _present(wanted: Sequence[DesiredEvent]) -> list[Event]:
    return list(Event.objects.filter(active_key__in=[each.key for each in wanted]))


def _known(wanted: Sequence[DesiredEvent]) -> dict[str | None, Event]:
    return {row.active_key: row for row in _present(wanted)}


def _insert(wanted: list[DesiredEvent], now: datetime, raw: bool, *, reborn: bool, tries: int = TRIES) -> int:
    """Insert first rows. ``reborn``: the entity is surely new, so rows that exist belong to a dead one."""
    wanted = [each for each in wanted if needs_row(each)]
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


def _bury(rows: list[Event], now: datetime) -> None:
    revoke(
        Event.objects.filter(pk__in=[row.pk for row in rows]),
        active_key=None,
        wake_at=None,
        status=Case(When(status=EventStatus.PENDING, then=Value(EventStatus.CANCELLED.value)), default=F("status")),
    )
    for listener in subscribers():
        listener.withdrawn(rows, now, "its entity was deleted")


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
            elif not differs(row, wanted):
                same.append((row, wanted))
                break
            elif occurs_again(row, wanted, now):
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
    report_failures(same)
    return len(changed) + len(renewed)


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
    apply_desired(row, wanted, now)
    if not revoke(Event.objects.filter(pk=row.pk, seq=seq), **{name: getattr(row, name) for name in WRITTEN}):
        return False
    row.seq = seq + 1
    return True


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
