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
fired (null: ``fired_position``); it has no entry for a skipped offset. ``recorded_after`` is set for an event that is
due when it is recorded and that spawns agents: everything that arrived up to this position was before it.

``changed_values`` has the values of the compared fields before and after the write that makes the event occur, as JSON
(``changes.py``); null where its definition compares none.

``timezone`` is the name of the time zone on whose wall clock offsets count, evaluated together with the condition. An
empty one is ``TIME_ZONE``.

``planned_for`` is a digest of the subscribers that ``wake_at`` was computed for (``timing.plan_of``).

A living entity has at most one row with an ``active_key`` for each definition. Where a definition lets an event occur
again, the old row gives up its key and stays as history, and a new row replaces it.

An event that code has emitted (``FreeEvent``) has no entity: its ``entity_type`` is empty, its ``entity_id`` is the key
that ``emit`` was given, and its ``payload`` is written when it is recorded. It is always armed, and has its
date until it is moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from django.apps import apps
from django.db import models
from django.utils import timezone as clock
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ...db.indexes import PartialIndex, unique
from ...db.writer import WriterQuerySet, alias_of, from_writer
from ...exceptions import NotResumableError, UnknownEventError
from ...queues.history import noted
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...queues.tracing import trace_context_field
from ...queues.wakeable import Wakeable, parked_index, timed, wake_index
from ...values.clock import Offset, aware, in_utc, shift
from ...values.digests import KEY_LENGTH, digest
from ...values.text import last_line
from ...values.zones import zone_or_default
from ..changes import changes_of
from ..declarations import concrete_ancestors, declared_on, find_declared
from ..definitions import EventDefinition, EventTrigger
from ..entity_ids import entity_id_of
from ..free_events import all_free_events, find_free_event
from ..names import pattern_of
from ..zones import MAX_ZONE_NAME

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


def free_key(name: str, namespace: str, key: str) -> str:
    """Return the ``active_key`` of the event that is emitted once under ``key``."""
    return digest("emit", name, namespace, key)


def has_final_date(prefix: str = "") -> models.Q:
    """Return the condition for events that get no other date and are not recorded again: history rows, and events
    without an entity that are not pending any more. ``prefix``: the path to the event from another model,
    ``"event__"``."""
    over = [EventStatus.PROCESSED, EventStatus.CANCELLED, EventStatus.EXPIRED]
    is_history = models.Q(**{f"{prefix}active_key": None})
    return is_history | models.Q(**{f"{prefix}entity_type": "", f"{prefix}status__in": over})


def rows_of_entity(entity: models.Model, path: str = "") -> models.Q:
    """Return the condition for rows (events or runs) of ``entity``, whichever class of its inheritance chain it was
    loaded as. ``path``: the lookup of the row with the entity's columns, such as ``"event__"``."""
    query = models.Q(pk__in=[])
    for parent in concrete_ancestors(type(entity)):
        pk = getattr(entity, parent._meta.pk.attname)
        entity_id = entity_id_of(parent, pk)
        query |= models.Q(**{f"{path}entity_type": parent._meta.label_lower, f"{path}entity_id": entity_id})
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

    entity_type = models.CharField(_("entity type"), max_length=200, blank=True, default="", editable=False)
    entity_id = models.CharField(_("entity id"), max_length=255, blank=True, default="", editable=False)
    event_name = models.CharField(_("event name"), max_length=200, editable=False)
    declared_as = models.CharField(_("declared as"), max_length=200, editable=False)
    namespace = models.CharField(_("namespace"), max_length=100, blank=True, default="", editable=False)
    trigger = models.CharField(_("trigger"), max_length=10, blank=True, default="", editable=False)
    status = models.CharField(
        _("status"), max_length=10, choices=EventStatus, default=EventStatus.PENDING, editable=False
    )
    at = models.DateTimeField(_("at"), null=True, blank=True, editable=False)
    event_created_at = models.DateTimeField(_("event created at"), default=clock.now, editable=False)
    occurred_at = models.DateTimeField(_("occurred at"), null=True, blank=True, editable=False)
    armed = models.BooleanField(_("armed"), default=False, editable=False)
    fired = models.JSONField(_("fired"), default=list, blank=True, editable=False)
    position = models.BigIntegerField(_("position"), null=True, blank=True, editable=False)
    fired_position = models.BigIntegerField(_("fired position"), null=True, blank=True, editable=False)
    recorded_after = models.BigIntegerField(_("recorded after"), null=True, blank=True, editable=False)
    milestone_positions = models.JSONField(_("milestone positions"), default=dict, blank=True, editable=False)
    pending_notifications = models.JSONField(_("pending notifications"), default=list, blank=True, editable=False)
    watched = models.CharField(_("watched"), max_length=KEY_LENGTH, blank=True, default="", editable=False)
    changed_values = models.JSONField(_("changed values"), null=True, blank=True, editable=False)
    timezone = models.CharField(_("time zone"), max_length=MAX_ZONE_NAME, blank=True, default="", editable=False)
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
    trace_context = trace_context_field()
    active_key = models.CharField(_("active key"), max_length=KEY_LENGTH, null=True, blank=True, editable=False)

    objects = EventQuerySet.as_manager()  # type: ignore[misc, assignment]

    drain_order: ClassVar[int] = 10
    kind: ClassVar[str] = "events"
    claim_batches: ClassVar[int] = 10

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        constraints = [unique("automation_event_active", "active_key")]
        permissions = [
            ("resume_event", "Can resume parked events"),
            ("cancel_event", "Can cancel pending events"),
            ("fire_event", "Can let pending events occur now"),
            ("move_event", "Can move pending events"),
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
    captured_in: int | None = None
    """The transaction of the captured write that this row records; None: the open transaction. Not stored."""

    def __str__(self) -> str:
        if self.is_free:
            return f"event {self.event_name!r}" + (f" with the key {self.key!r}" if self.key else "")
        return f"event {self.event_name!r} of {self.entity_type} {self.entity_id}"

    @property
    def is_free(self) -> bool:
        """Whether code has emitted this event, so that it has no entity."""
        return not self.entity_type

    @property
    def key(self) -> str:
        """The key that ``emit`` was given, or an empty string."""
        return self.entity_id if self.is_free else ""

    @property
    def context_fields(self) -> dict[str, Any]:
        """The fields that a Context gets from its event where the class has no ``create_context``."""
        return (self.payload or {}) if self.is_free else {"entity_id": self.entity_id}

    @property
    def definition(self) -> EventDefinition | None:
        """The declaration of this event in today's code, or None if it was removed."""
        if self.is_free:
            return find_free_event(self.declared_as)
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
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What has changed, for an event with ``was=``, ``becomes=`` or ``watch_fields=``: the value before the
        transaction and the value after it, by field. A relation is its primary key; None before a creation and after
        a deletion, and in place of a value that JSON cannot hold."""
        return changes_of(self.entity_type, self.changed_values)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that routing shapes are stored under: the name, and the pattern of its template if any."""
        pattern = pattern_of(self.declared_as)
        return (self.event_name,) if pattern == self.event_name else (self.event_name, pattern)

    @property
    def entity(self) -> Any:
        """The model instance that the event is about, read on first access.

        After the entity was deleted, an unsaved instance that is restored from its snapshot. None if the entity was
        deleted without a snapshot (raw SQL), if its model was removed, or if the event was emitted without an entity.
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
        if self.is_free:
            return None
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

    @property
    def zone(self) -> tzinfo:
        """The time zone on whose wall clock offsets count: that of the entity, or ``TIME_ZONE``."""
        return zone_or_default(self.timezone)

    def moment_of(self, offset: Offset | None) -> datetime:
        """Return the moment at ``offset`` from the date, which is not None."""
        assert self.at is not None
        return shift(self.at, offset, self.zone)

    @from_writer()
    def current_timezone(self) -> str:
        """Return the name of the time zone that the entity has now.

        Raises ``UnknownTimeZoneError``, and whatever the project's function raises.
        """
        definition = self.definition
        return "" if definition is None or definition.timezone is None else definition.timezone_of(self.entity)

    def current_date(self, timezone: str) -> datetime | None:
        """Return the date in the entity's date field now; for an immediate event, when it occurred. ``timezone``: the
        name of the time zone in which a date without a time is midnight."""
        definition = self.definition
        if definition is None or definition.date_field is None:
            return self.at
        value = getattr(self.entity, definition.date_field)
        what = f"{self.entity_type}.{definition.date_field}"
        return None if value is None else in_utc(aware(value, what, zone_or_default(timezone)))

    @property
    def is_on_a_day(self) -> bool:
        """Whether the date of the event is a day, without a time."""
        definition = self.definition
        if definition is None or definition.date_field is None:
            return False
        field = apps.get_model(self.entity_type)._meta.get_field(definition.date_field)
        return not isinstance(field, models.DateTimeField)

    @property
    @from_writer()
    def is_valid(self) -> bool:
        """Whether the event could occur now: the entity exists and has a date, and the condition holds."""
        definition = self.definition
        if definition is None or not self.has_date:
            return False
        if self.is_free:
            return True
        return self.trigger == EventTrigger.DELETE or definition.holds_for(self.entity)

    @property
    @from_writer()
    def has_date(self) -> bool:
        """Whether the entity exists and has a date for the event. The condition is not evaluated."""
        definition = self.definition
        if self.trigger == EventTrigger.DELETE or self.is_free:
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
            return timed(gettext("its next attempt"), self.wake_at) + f": {last_line(self.error)}"
        if self.wake_at is not None:
            is_pending = self.status == EventStatus.PENDING
            if not self.armed and self.status != EventStatus.PROCESSED:
                what = gettext("the next evaluation of its condition")
            else:
                what = gettext("its date") if self.wake_at == self.at and is_pending else gettext("its next offset")
            return timed(what, self.wake_at)
        definition = self.definition
        if definition is None:
            if self.is_free:
                return gettext("code that declares %s as a FreeEvent") % repr(self.declared_as)
            given = {"event": repr(self.declared_as), "model": self.entity_type}
            return gettext("code that declares %(event)s on %(model)s") % given
        if definition.date_field is not None:
            # An event with a date has a wake_at.
            return gettext("a date: %s is NULL") % repr(definition.date_field) if self.at is None else ""
        if self.armed:
            return ""
        if definition.transition is None:
            return gettext("a save that makes its condition true")
        return gettext("a save that makes its transition")

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
        if self.is_free:
            if declared and self.definition is None:
                near = get_close_matches(self.declared_as, [each.name for each in all_free_events()], n=1)
                hint = f" Was it renamed to {near[0]!r}?" if near else ""
                raise UnknownEventError(
                    f"{self}: no FreeEvent({self.declared_as!r}) is declared any longer.{hint} Declare it again and "
                    "the event resumes automatically, or cancel the event."
                )
            return
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

    @noted("Resumed")
    def resume(self, now: datetime | None = None) -> None:
        """Make a parked event due now. Raises ``NotResumableError`` if it is not parked."""
        moment = aware(now or clock.now(), "now")
        parked = Event.objects.filter(pk=self.pk, status=EventStatus.PARKED)
        changed = revoke(parked, status=self.resumed_status, error="", parked_at=None, wake_at=moment)
        if not changed:
            raise NotResumableError(f"{self} is {self.status}; only a parked event can be resumed.")
        ring_after_commit(alias_of(Event), Event)
        self.refresh_from_db()

    @noted("Cancelled")
    def cancel(self, now: datetime | None = None) -> bool:
        """Cancel a pending event; ``on_event_cancelled`` callbacks run. Returns whether it was still pending."""
        return self.behaviour.cancel(Event.objects.filter(pk=self.pk), aware(now or clock.now(), "now")) > 0

    @noted("Fired")
    def fire_now(self, now: datetime | None = None) -> bool:
        """Let a pending event occur now instead of at its date.

        A worker performs it after the commit of the caller's transaction, as at its date: the condition is evaluated,
        the occurrence gets its position, and every subscriber is notified. The date stays, and offsets count from it:
        those before the date, which have not fired yet, and those after it come when they would have come. The row is
        locked; a save of the entity at the same time changes nothing of this.

        Returns:
            True if it was not due yet. False if it is about to occur anyway.

        Raises:
            StateError: If the event has occurred, is cancelled, expired or parked, has no date, or if its condition is
                false.

        Example:
            A guest arrives a day early::

                Event.objects.of(stay).pending().get(event_name="checkin_due").fire_now()
        """
        return self.behaviour.fire_now(self, aware(now or clock.now(), "now"))

    @noted("Moved")
    def move(self, at: datetime, now: datetime | None = None) -> bool:
        """Give a pending event without an entity (``emit(..., at=...)``) another date.

        Its offsets, and runs that are planned for it, move along in the caller's transaction; an offset that has fired
        fires again if it is in the future again, as for an event of an entity whose date moves. A date in the past is
        due after the commit. The row is locked.

        Args:
            at: The new date, as a datetime with a time zone.
            now: The current time. Default: that of the clock.

        Returns:
            True if it had another date.

        Raises:
            DefinitionError: If the event belongs to an entity. It follows a field of the entity, which the message
                names.
            StateError: If the event has occurred, is cancelled, expired or parked.
            UnknownEventError: If this code no longer declares the event.
            NaiveDatetimeError: If ``at`` has no time zone.

        Example:
            The delivery is a day late::

                Event.objects.get(event_name="delivery", entity_id="parcel:7").move(tomorrow)
        """
        return self.behaviour.move(self, at, aware(now or clock.now(), "now"))


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
