"""The baseline: mark what already holds for the rows of a table as having occurred, all rows at once.

The first save of an old row evaluates the condition with the values before the save, and records what held already as
*expired* (``mark_existing``). A baseline records the same before any save. For ``watch_fields`` it records the current
values, so that the very next save that changes one of them occurs. With ``all_rows`` it also records immediate events
whose condition is false: such a row counts as seen, and what ``QuerySet.update`` makes true later occurs at its next
save.

Rows are read by primary key and evaluated outside any transaction; the event rows of a batch and the position are one
commit. A row whose entity was saved meanwhile has the key already, and the insert ignores it: the save knows more. So a
baseline may run beside workers and users, be killed at any commit, and be started again: it continues at the position,
which a row of ``Maintenance`` keeps that no worker ever performs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Q

from ...db.inserts import insert_ignoring, insert_similar_ignoring
from ...db.writer import alias_of, from_writer
from ...queues.history import note_key
from ...queues.lease import revoke
from ...queues.models import Maintenance
from ...values.clock import later
from ...values.digests import digest
from ...values.text import last_line
from ..callbacks import CREATED
from ..declarations import Declared, declared_on, declaring_models
from ..entity_ids import entity_id_of
from ..models import Event
from ..zone_queries import with_zones
from .desired_event import DesiredEvent, date_of, evaluate_definition, watched_values
from .event_row import new_row

MAX_NAME = 100
MAX_ZONE_DIFFERENCE = timedelta(hours=30)
"""A day begins at most this much later in one time zone than in another."""


def definitions_by_model() -> dict[type[models.Model], list[Declared]]:
    """Return all definitions by the model that owns them."""
    owned = {model: [each for each in declared_on(model) if each.owner is model] for model in declaring_models()}
    return {model: found for model, found in owned.items() if found}


def skipped_because(declared: Declared) -> str:
    """Return why a definition has no baseline, or an empty string."""
    definition = declared.definition
    if definition.existing == "fire":
        return 'existing="fire": it occurs at the next save of each row'
    if definition.triggers and not definition.watch_fields:
        return "it occurs at writes, whatever a row was before"
    return ""


@dataclass(slots=True)
class Count:
    """What became of the rows for one definition.

    Attributes:
        found: Rows with something to record.
        marked: Event rows that were inserted; in a dry run, those that would be.
        failed: Rows for which a function of the definition raised. They are left to their next save.
        error: The first such error, one line.
    """

    found: int = 0
    marked: int = 0
    failed: int = 0
    error: str = ""


@dataclass(slots=True)
class Baseline:
    """The baseline of one table: ``for read in baseline.run(): ...`` yields the number of rows read so far.

    Attributes:
        model: The model whose rows are read.
        definitions: Those of its definitions that get a baseline.
        now: The moment: a date after it is left to its timer.
        batch: Rows of one batch, and of one transaction.
        all_rows: Also record immediate events whose condition is false.
        dry_run: Only count.
        counts: The result for each definition, by its name.
    """

    model: type[models.Model]
    definitions: Sequence[Declared]
    now: datetime
    batch: int
    all_rows: bool = False
    dry_run: bool = False
    counts: dict[str, Count] = field(default_factory=dict)
    marked_before: int = field(default=0, init=False)
    is_noted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.counts = {each.definition.name: Count() for each in self.definitions}

    @property
    def name(self) -> str:
        """The name of the row that keeps the position."""
        name = f"baseline {self.model._meta.label_lower}"
        return name if len(name) <= MAX_NAME else f"baseline {digest(name)}"

    @property
    def _selection(self) -> str:
        """What the position is for: another selection of definitions starts at the beginning."""
        return digest(self.all_rows, *sorted(self.counts))

    def position(self) -> str | None:
        """Return the key after which an interrupted run continues, or None."""
        if self.dry_run:
            return None
        stored = Maintenance.objects.filter(name=self.name).values_list("position", flat=True).first() or {}
        return stored.get("after") if stored.get("selection") == self._selection else None

    def _marked_before(self) -> int:
        """Return how many events the run that this one continues has marked."""
        if self.position() is None:
            return 0
        return Maintenance.objects.filter(name=self.name).values_list("done", flat=True).first() or 0

    def forget_position(self) -> None:
        """Start at the beginning, and not where an interrupted run stopped."""
        revoke(Maintenance.objects.filter(name=self.name), position=None)

    def rows(self) -> models.QuerySet[Any]:
        """Return the rows to read: all that come after the position and that a definition may hold for."""
        rows = self.model._base_manager.using(alias_of(self.model)).order_by("pk")
        rows = with_zones(rows, [each.definition for each in self.definitions])
        dates = [each.definition.date_field for each in self.definitions]
        if None not in dates:
            rows = rows.filter(Q(*[(f"{name}__lte", self._last_date(str(name))) for name in dates], _connector=Q.OR))
        after = self.position()
        return rows if after is None else rows.filter(pk__gt=self.model._meta.pk.to_python(after))

    def _last_date(self, name: str) -> Any:
        if isinstance(self.model._meta.get_field(name), models.DateTimeField):
            return self.now
        return self.now.date() + timedelta(days=1)  # of a time zone that is ahead; compared exactly once it is read

    def run(self) -> Iterator[int]:
        """Read all rows, batch by batch, and mark what holds for them; yield the number of rows read so far."""
        if not self.dry_run:
            insert_ignoring(Maintenance, [Maintenance(name=self.name)])
            self.marked_before = self._marked_before()
            self.is_noted = self.marked_before > 0
        rows, read = self.rows(), 0
        chunk = list(rows[: self.batch])
        while chunk:
            read += len(chunk)
            found = self._evaluate(chunk)
            if self.dry_run:
                self._count(found)
            else:
                self._mark(found, entity_id_of(self.model, chunk[-1].pk))
            yield read
            chunk = list(rows.filter(pk__gt=chunk[-1].pk)[: self.batch])
        if not self.dry_run:
            revoke(Maintenance.objects.filter(name=self.name), position=None, completed_at=self.now)

    @from_writer()
    def _evaluate(self, entities: Sequence[models.Model]) -> dict[str, list[DesiredEvent]]:
        """Return what is to be recorded for the entities, by the name of the definition."""
        found: dict[str, list[DesiredEvent]] = {name: [] for name in self.counts}
        for declared in self.definitions:
            name, count = declared.definition.name, self.counts[declared.definition.name]
            for entity in entities:
                desired = self._desired(declared, entity)
                if desired is None:
                    continue
                if desired.error:
                    count.failed += 1
                    count.error = count.error or f"{entity._meta.label} {entity.pk}: {last_line(desired.error)}"
                else:
                    found[name].append(desired)
            count.found += len(found[name])
        return found

    def _desired(self, declared: Declared, entity: models.Model) -> DesiredEvent | None:
        """Return the event to record for ``entity``, or whose definition raises; None: there is nothing to record."""
        definition = declared.definition
        at = None if definition.date_field is None else date_of(entity, definition.date_field)
        tolerance = timedelta(0) if definition.timezone is None else MAX_ZONE_DIFFERENCE
        if definition.is_scheduled and (at is None or at > later(self.now, tolerance)):
            return None  # it has no date, or its timer is still to come
        watched = watched_values(entity, definition) if definition.watch_fields else None
        entity_id = declared.entity_id_of(entity)
        desired = DesiredEvent(declared, entity_id, definition.name, "", at, watched or "", False)
        evaluate_definition(desired, entity, raw=False)
        if definition.timezone is not None and definition.date_field is not None:
            desired.at = date_of(entity, definition.date_field, desired.timezone)
            if desired.at is None or desired.at > self.now:
                return None
        desired.held_before = desired.armed
        if desired.armed or desired.error or definition.watch_fields:
            return desired
        return desired if self.all_rows and not definition.is_scheduled else None

    def _count(self, found: dict[str, list[DesiredEvent]]) -> None:
        for name, holding in found.items():
            known = Event.objects.filter(active_key__in=[each.key for each in holding]).count() if holding else 0
            self.counts[name].marked += len(holding) - known

    def _mark(self, found: dict[str, list[DesiredEvent]], after: str) -> None:
        """Insert the event rows of one batch, and store the position in the same transaction. The first one that marks
        anything also records who does it: a run that is killed later and continued has one entry."""
        with transaction.atomic(using=alias_of(Event)):
            for name, holding in found.items():
                self.counts[name].marked += insert_similar_ignoring(Event, [self._row(each) for each in holding])
            position = {"after": after, "selection": self._selection}
            marked = self.marked_before + sum(each.marked for each in self.counts.values())
            if marked and not self.is_noted:
                names = ", ".join(map(repr, self.counts))
                note_key(self.model, "baseline", f"{self.model._meta.label}, events {names}", "Baselined")
                self.is_noted = True
            revoke(Maintenance.objects.filter(name=self.name), position=position, done=marked)

    def _row(self, desired: DesiredEvent) -> Event:
        row = new_row(desired, self.now, raw=False)
        row.fired, row.wake_at = [CREATED], None  # no callback is called for what was there before
        return row
