"""``Event``: one event of one entity, and the timer of everything that is due at an offset from its date.

A row is recorded in the transaction that saves its entity. ``wake_at`` is the earliest of: the date, the subscribers'
offsets that have not fired, the end of the grace period. ``fired`` lists the milestones that have fired, so none fires
twice when the date moves. ``armed`` is the result of the latest evaluation of the condition. A milestone that has been
committed stays in ``pending_notifications`` until its subscribers have been notified; if the process dies first, the
row becomes due again.

``attempt`` counts consecutive evaluations that raised (condition, name or payload), and ``error`` has the traceback of
the latest. After a few attempts with a backoff the row is parked.

``position`` is the place of the occurrence in the one order of all arrivals (``queues/positions.py``), and
``fired_position`` the place of the latest milestones. ``milestone_positions`` has the position of each offset that has
fired (null: ``fired_position``); it has no entry for a skipped offset.

``planned_for`` is a digest of the subscribers that ``wake_at`` was computed for (``timing.plan_of``).

A living entity has at most one row with an ``active_key`` for each definition. Where a definition lets an event occur
again, the old row gives up its key and stays as history, and a new row replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from django.apps import apps
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ...db.indexes import PartialIndex, unique
from ...db.writer import WriterQuerySet, alias_of, from_writer
from ...exceptions import NotResumableError, UnknownEventError
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...queues.wakeable import Wakeable, at_text, parked_index, wake_index
from ...values.clock import aware
from ...values.digests import KEY_LENGTH, digest
from ...values.text import last_line
from ..declarations import concrete_ancestors, declared_on, find_declared
from ..definitions import EventDefinition, EventTrigger
from ..entity_ids import entity_id_of
from ..names import pattern_of

if TYPE_CHECKING:
    from ..failed_evaluation import FailedEvaluation


class EventStatus(models.TextChoices):
    PENDING = "pending", _("Pending")
    PROCESSED = "processed", _("Processed")
    CANCELLED = "cancelled", _("Cancelled")
    EXPIRED = "expired", _("Expired")
    PARKED = "parked", _("Parked")


def active_key(label: str, entity_id: object, name: str) -> str:
    """Return the key that makes the event of one entity and definition unique while the entity lives."""
    return digest("event", label, entity_id, name)


def rows_of_entity(entity: models.Model) -> models.Q:
    """Return the condition for rows (events or runs) of ``entity``, whichever class of its inheritance chain it was
    loaded as."""
    query = models.Q(pk__in=[])
    for parent in concrete_ancestors(type(entity)):
        pk = getattr(entity, parent._meta.pk.attname)
        query |= models.Q(entity_type=parent._meta.label_lower, entity_id=entity_id_of(parent, pk))
    return query


class EventQuerySet(WriterQuerySet["Event"]):
    def of(self, entity: models.Model) -> EventQuerySet:
        """Return the events of one entity, whichever class of its inheritance chain it was loaded as."""
        return self.filter(rows_of_entity(entity))

    def due(self, now: datetime) -> EventQuerySet:
        return self.filter(wake_at__lte=now)

    def occurred(self) -> EventQuerySet:
        return self.filter(status=EventStatus.PROCESSED)

    def pending(self) -> EventQuerySet:
        return self.filter(status=EventStatus.PENDING)


class Event(Wakeable):
    """One event of one entity."""

    entity_type = models.CharField(_("entity type"), max_length=200, editable=False)
    entity_id = models.CharField(_("entity id"), max_length=255, editable=False)
    event_name = models.CharField(_("event name"), max_length=200, editable=False)
    declared_as = models.CharField(_("declared as"), max_length=200, editable=False)
    namespace = models.CharField(_("namespace"), max_length=100, blank=True, default="", editable=False)
    trigger = models.CharField(_("trigger"), max_length=10, blank=True, default="", editable=False)
    status = models.CharField(
        _("status"), max_length=10, choices=EventStatus, default=EventStatus.PENDING, editable=False
    )
    at = models.DateTimeField(_("at"), null=True, blank=True, editable=False)
    event_created_at = models.DateTimeField(_("event created at"), default=timezone.now, editable=False)
    occurred_at = models.DateTimeField(_("occurred at"), null=True, blank=True, editable=False)
    armed = models.BooleanField(_("armed"), default=False, editable=False)
    fired = models.JSONField(_("fired"), default=list, blank=True, editable=False)
    position = models.BigIntegerField(_("position"), null=True, blank=True, editable=False)
    fired_position = models.BigIntegerField(_("fired position"), null=True, blank=True, editable=False)
    milestone_positions = models.JSONField(_("milestone positions"), default=dict, blank=True, editable=False)
    pending_notifications = models.JSONField(_("pending notifications"), default=list, blank=True, editable=False)
    watched = models.CharField(_("watched"), max_length=KEY_LENGTH, blank=True, default="", editable=False)
    planned_for = models.CharField(_("planned for"), max_length=KEY_LENGTH, blank=True, default="", editable=False)
    payload = models.JSONField(_("payload"), null=True, blank=True, editable=False)
    snapshot = models.ForeignKey(
        "Snapshot",
        models.SET_NULL,
        verbose_name=_("snapshot"),
        null=True,
        blank=True,
        editable=False,
        db_index=False,
        related_name="+",
    )
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    attempt = models.PositiveSmallIntegerField(_("attempt"), default=0, editable=False)
    caused_by = models.CharField(_("caused by"), max_length=200, blank=True, default="", editable=False)
    depth = models.PositiveSmallIntegerField(_("depth"), default=0, editable=False)
    active_key = models.CharField(_("active key"), max_length=KEY_LENGTH, null=True, blank=True, editable=False)

    objects = EventQuerySet.as_manager()  # type: ignore[misc, assignment]

    drain_order: ClassVar[int] = 10
    queue: ClassVar[str] = "events"
    claim_batches: ClassVar[int] = 10

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        constraints = [unique("automation_event_active", "active_key")]
        permissions = [
            ("resume_event", "Can resume parked events"),
            ("cancel_event", "Can cancel pending events"),
            ("view_data_event", "Can view payloads and snapshots of events"),
        ]
        indexes = [
            wake_index("automation_event"),
            parked_index("automation_event"),
            models.Index(fields=["entity_id", "entity_type", "event_name"], name="automation_event_entity"),
            models.Index(fields=["event_name", "position"], name="automation_event_position"),
            PartialIndex(
                fields=["event_name", "entity_type", "position"],
                name="automation_event_deleted",
                condition=models.Q(snapshot__isnull=False),
            ),
            PartialIndex(
                fields=["snapshot"], name="automation_event_snapshot", condition=models.Q(snapshot__isnull=False)
            ),
        ]

    failed_evaluation: FailedEvaluation | None = None
    """What the definition raised in the save that writes this row. Not stored."""

    def __str__(self) -> str:
        return f"event {self.event_name!r} of {self.entity_type} {self.entity_id}"

    @property
    def definition(self) -> EventDefinition | None:
        """The declaration of this event in today's code, or None if it was removed."""
        declared = find_declared(self.entity_type, self.declared_as)
        return declared.definition if declared else None

    def position_of(self, milestone: str) -> int:
        """Return the position at which ``milestone`` fired; 0 if it has not fired."""
        if not milestone:
            return self.position or 0
        found = self.milestone_positions.get(milestone, 0)
        return (self.fired_position or 0) if found is None else int(found)

    @property
    def fired_offsets(self) -> list[str]:
        """The offsets that have fired, without the skipped ones that ``fired`` also lists."""
        return [milestone for milestone in self.fired if milestone in self.milestone_positions]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that routing shapes are stored under: the name, and the pattern of its template if any."""
        pattern = pattern_of(self.declared_as)
        return (self.event_name,) if pattern == self.event_name else (self.event_name, pattern)

    @property
    def entity(self) -> Any:
        """The model instance that the event is about, read on first access.

        After the entity was deleted, an unsaved instance that is restored from its snapshot. None if the entity was
        deleted without a snapshot (raw SQL), or if its model was removed.
        """
        if "_entity" not in self.__dict__:
            self.__dict__["_entity"] = self.load_entity()
        return self.__dict__["_entity"]

    @entity.setter
    def entity(self, value: models.Model | None) -> None:
        self.__dict__["_entity"] = value

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: models.QuerySet[Event, Event] | None = None,
    ) -> None:
        """Read the row again, and its entity on next access."""
        super().refresh_from_db(using=using, fields=fields, from_queryset=from_queryset)
        if fields is None:
            self.__dict__.pop("_entity", None)

    def load_entity(self) -> models.Model | None:
        try:
            model = apps.get_model(self.entity_type)
        except (LookupError, ValueError):
            return None
        if self.snapshot_id is None and self.active_key is None:
            inherit_snapshots(self.entity_type, [self])
        if self.snapshot is not None:
            return self.snapshot.restore()
        pk = model._meta.pk.to_python(self.entity_id)
        found: models.Model | None = model._base_manager.using(alias_of(model)).filter(pk=pk).first()
        if found is None and self.active_key is not None:
            # The entity may have been deleted since this row was read.
            self.snapshot_id = Event.objects.filter(pk=self.pk).values_list("snapshot", flat=True).first()
            return None if self.snapshot is None else self.snapshot.restore()
        return found

    def current_date(self) -> datetime | None:
        """Return the date in the entity's date field now; for an immediate event, when it occurred."""
        definition = self.definition
        if definition is None or definition.date_field is None:
            return self.at
        value = getattr(self.entity, definition.date_field)
        return None if value is None else aware(value, f"{self.entity_type}.{definition.date_field}")

    @property
    @from_writer()
    def is_valid(self) -> bool:
        """Whether the event could occur now: the entity exists and has a date, and the condition holds."""
        definition = self.definition
        if definition is None or not self.has_date:
            return False
        return self.trigger == EventTrigger.DELETE or definition.holds_for(self.entity)

    @property
    @from_writer()
    def has_date(self) -> bool:
        """Whether the entity exists and has a date for the event. The condition is not evaluated."""
        definition = self.definition
        if self.trigger == EventTrigger.DELETE:
            return definition is not None
        if definition is None or self.entity is None or self.snapshot_id is not None:
            return False
        return definition.date_field is None or getattr(self.entity, definition.date_field) is not None

    @classmethod
    def unfinished(cls) -> EventQuerySet:
        """Return the events that may still occur or fire an offset, and the parked ones."""
        return cls.objects.filter(
            models.Q(status__in=[EventStatus.PENDING, EventStatus.PARKED]) | models.Q(wake_at__isnull=False)
        )

    def waiting_reason(self, now: datetime) -> str:
        if self.status == EventStatus.PARKED:
            return self.parked_reason()
        if self.wake_at is not None and self.attempt:
            return f"its next attempt, {at_text(self.wake_at)}: {last_line(self.error)}"
        if self.wake_at is not None:
            milestone = (
                "its date" if self.wake_at == self.at and self.status == EventStatus.PENDING else "its next offset"
            )
            keeps = self.armed or self.status == EventStatus.PROCESSED
            return f"{milestone if keeps else 'the next evaluation of its condition'}, {at_text(self.wake_at)}"
        definition = self.definition
        if definition is None:
            return f"code that declares {self.declared_as!r} on {self.entity_type}"
        if definition.date_field is not None:
            # An event with a date has a wake_at.
            return f"a date: {definition.date_field!r} is NULL" if self.at is None else ""
        return "" if self.armed else "a save that makes its condition true"

    def set_parked(self, reason: str, now: datetime) -> None:
        """Park a row that is about to be written, until an operator resumes it."""
        self.status, self.error, self.parked_at, self.wake_at, self.lease = EventStatus.PARKED, reason, now, None, None

    @property
    def resumed_status(self) -> EventStatus:
        """The status that a parked event gets when it is resumed."""
        return EventStatus.PROCESSED if self.occurred_at else EventStatus.PENDING

    def check_known(self, *, declared: bool = False) -> None:
        """Raise ``UnknownEventError`` if this code does not have the model of the entity or, with ``declared``, if the
        model does not declare the event."""
        try:
            model = apps.get_model(self.entity_type)
        except (LookupError, ValueError):
            near = get_close_matches(self.entity_type, [each._meta.label_lower for each in apps.get_models()], n=1)
            hint = f" Was it renamed to {near[0]!r}?" if near else ""
            raise UnknownEventError(
                f"{self}: the model {self.entity_type!r} no longer exists.{hint} Restore it and the event resumes "
                "automatically, or cancel the event."
            ) from None
        if declared and self.definition is None:
            names = [each.definition.name for each in declared_on(model)]
            near = get_close_matches(self.declared_as, names, n=1)
            hint = f" Was it renamed to {near[0]!r}?" if near else ""
            raise UnknownEventError(
                f"{self}: {model._meta.label} no longer declares the event {self.declared_as!r}.{hint} Declare it "
                "again and the event resumes automatically, or cancel the event."
            )

    def resume(self, now: datetime | None = None) -> None:
        """Make a parked event due now. Raises ``NotResumableError`` if it is not parked."""
        moment = aware(now or timezone.now(), "now")
        parked = Event.objects.filter(pk=self.pk, status=EventStatus.PARKED)
        changed = revoke(parked, status=self.resumed_status, error="", parked_at=None, wake_at=moment)
        if not changed:
            raise NotResumableError(f"{self} is {self.status}; only a parked event can be resumed.")
        ring_after_commit(alias_of(Event), Event)
        self.refresh_from_db()

    def cancel(self, now: datetime | None = None) -> bool:
        """Cancel a pending event; ``on_event_cancelled`` callbacks run. Returns whether it was still pending."""
        return self.behaviour.cancel(Event.objects.filter(pk=self.pk), aware(now or timezone.now(), "now")) > 0


def inherit_snapshots(label: str, history: Sequence[Event]) -> None:
    """Give ``history`` rows the snapshot that the deletion wrote to a later row of the same entity and definition.

    It is the snapshot of the next deletion: the primary key may have been used again since.
    """
    if not history:
        return
    found: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
    taken = Event.objects.filter(
        entity_type=label, entity_id__in={event.entity_id for event in history}, snapshot__isnull=False
    )
    for pk, entity_id, declared_as, snapshot in taken.order_by("pk").values_list(
        "pk", "entity_id", "declared_as", "snapshot"
    ):
        found.setdefault((entity_id, declared_as), []).append((pk, snapshot))
    for event in history:
        later = (each for each in found.get((event.entity_id, event.declared_as), ()) if each[0] > (event.pk or 0))
        event.snapshot_id = next((snapshot for _, snapshot in later), None)
