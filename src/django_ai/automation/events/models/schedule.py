"""``Schedule``: a row that is due at the next time of its timetable."""

from __future__ import annotations

import zoneinfo
from datetime import datetime
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models
from django.utils.timezone import now as current_time
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ...db.indexes import PartialIndex, unique
from ...db.writer import alias_of
from ...exceptions import DefinitionError, NotResumableError
from ...queues.history import noted
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...queues.wakeable import Wakeable, timed, wake_index
from ...values.clock import aware
from ...values.timetable import MAX_CATCH_UP, Timetable, describe, timetable
from .event import Event


class ScheduleOverlap(models.TextChoices):
    ALLOW = "allow", _("Start another")
    SKIP = "skip", _("Leave this time out")
    QUEUE = "queue", _("Wait until the other has ended")


class Schedule(Wakeable):
    """A schedule, declared by code (``@schedule``) or by staff.

    ``reached``: the time up to which everything was fired or left out; the next time is the first after it. ``anchor``:
    from where an interval counts.
    """

    name = models.CharField(_("name"), max_length=200)
    target = models.CharField(_("target"), max_length=200, help_text=_("The workflow or function that is started."))
    cron = models.CharField(
        _("cron expression"), max_length=100, blank=True, default="", help_text=_("For example 0 2 * * *.")
    )
    every = models.DurationField(_("every"), null=True, blank=True, help_text=_("An interval, instead of cron."))
    timezone = models.CharField(_("time zone"), max_length=64, blank=True, default="")
    arguments = models.JSONField(_("arguments"), default=dict, blank=True)
    catch_up = models.PositiveSmallIntegerField(
        _("catch up"),
        default=1,
        validators=[MaxValueValidator(MAX_CATCH_UP)],
        help_text=_("How many missed times are made up for after an outage."),
    )
    catch_up_within = models.DurationField(
        _("catch up within"), null=True, blank=True, help_text=_("Instead: the times that are not older than this.")
    )
    overlap = models.CharField(_("overlap"), max_length=10, choices=ScheduleOverlap, default=ScheduleOverlap.ALLOW)
    is_declared = models.BooleanField(_("declared in code"), default=False, editable=False)
    created_at = models.DateTimeField(_("created at"), default=current_time, editable=False)
    anchor = models.DateTimeField(_("anchor"), default=current_time, editable=False)
    reached = models.DateTimeField(_("reached"), default=current_time, editable=False)
    paused_at = models.DateTimeField(_("paused at"), null=True, blank=True, editable=False)
    fired = models.BigIntegerField(_("fired"), default=0, editable=False)
    fired_at = models.DateTimeField(_("fired at"), null=True, blank=True, editable=False)
    skipped = models.BigIntegerField(_("skipped"), default=0, editable=False)
    last_event = models.ForeignKey(
        Event,
        verbose_name=_("last event"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        editable=False,
    )
    error = models.TextField(_("error"), blank=True, default="", editable=False)

    drain_order: ClassVar[int] = 5
    kind: ClassVar[str] = "schedules"

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        constraints = [unique("automation_schedule_name", "name")]
        permissions = [
            ("pause_schedule", "Can pause schedules"),
            ("fire_schedule", "Can fire schedules"),
            ("resume_schedule", "Can resume parked schedules"),
        ]
        indexes = [
            wake_index("automation_schedule"),
            PartialIndex(
                fields=["parked_at"], name="automation_schedule_parked", condition=models.Q(parked_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"schedule {self.name!r}"

    @property
    def timetable(self) -> Timetable:
        """When it is due. Raises ``DefinitionError`` if the row is invalid."""
        when = self.every if self.every is not None else self.cron
        return timetable(when, self.timezone if self.every is None else None, str(self))

    @property
    def in_words(self) -> str:
        """When it is due, for people."""
        return describe(self.every if self.every is not None else self.cron)

    def clean(self) -> None:
        """Raise ``ValidationError`` unless it has a valid timetable, and arguments that are a dict."""
        if (self.every is None) == (not self.cron):
            raise ValidationError(_("Give either a cron expression or an interval."))
        if not isinstance(self.arguments, dict):
            raise ValidationError({"arguments": _("Give a dictionary of values.")})
        if self.timezone and self.timezone not in zoneinfo.available_timezones():
            raise ValidationError({"timezone": _("There is no such time zone.")})
        try:
            times = self.timetable
        except DefinitionError as error:
            raise ValidationError({"cron" if self.every is None else "every": str(error)}) from error
        if times.after(current_time(), self.anchor) is None:
            raise ValidationError(_("It is never due."))

    @classmethod
    def unfinished(cls) -> models.QuerySet[Any]:
        return cls.objects.all()

    @property
    def is_finished(self) -> bool:
        return False

    def waiting_reason(self, now: datetime) -> str:
        if self.paused_at is not None:
            return gettext("an operator, to unpause it")
        if self.parked_at is not None:
            return self.parked_reason()
        return "" if self.wake_at is None else timed(gettext("its next time"), self.wake_at)

    def plan(self, now: datetime) -> None:
        """Make it due at its first time after ``now``. What was missed is left out."""
        moment = aware(now, "now")
        self._change(reached=moment, wake_at=self.timetable.after(moment, self.anchor), error="", parked_at=None)

    @noted("Paused")
    def pause(self, now: datetime | None = None) -> None:
        """Fire it no more until ``unpause``. Times that pass meanwhile are left out."""
        self._change(paused_at=aware(now or current_time(), "now"), wake_at=None)

    @noted("Unpaused")
    def unpause(self, now: datetime | None = None) -> None:
        """Let a paused schedule continue with its next time."""
        moment = aware(now or current_time(), "now")
        self._change(
            paused_at=None, reached=moment, wake_at=self.timetable.after(moment, self.anchor), error="", parked_at=None
        )

    @noted("Resumed")
    def resume(self, now: datetime | None = None) -> None:
        """Let a parked schedule continue. Raises ``NotResumableError`` if it is not parked."""
        if self.parked_at is None:
            raise NotResumableError(f"{self} is not parked.")
        self._change(parked_at=None, error="", wake_at=aware(now or current_time(), "now"))

    def _change(self, **changes: Any) -> None:
        revoke(Schedule.objects.filter(pk=self.pk), **changes)
        ring_after_commit(alias_of(Schedule), Schedule)
        self.refresh_from_db()
