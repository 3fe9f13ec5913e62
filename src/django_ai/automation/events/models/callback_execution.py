"""``CallbackExecution``: one call of one function for one milestone of one event."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ...db.indexes import unique
from ...db.writer import alias_of
from ...exceptions import NotResumableError
from ...queues.history import noted
from ...queues.lanes import lane_indexes, lane_of
from ...queues.lease import revoke
from ...queues.limits.reasons import slot_reason, slot_reasons
from ...queues.limits.release import give_back
from ...queues.notifier import ring_after_commit
from ...queues.pausable import PausableWakeable
from ...queues.wakeable import attempt_text, ended_index, failed_index, parked_index, timed
from ...values.clock import aware
from ...values.digests import KEY_LENGTH, new_call_key
from .event import Event


class ExecutionStatus(models.TextChoices):
    PENDING = "pending", _("Pending")
    COMPLETED = "completed", _("Completed")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")
    PARKED = "parked", _("Parked")


class CallbackExecution(PausableWakeable):
    """One durable call of one function for one milestone of an event. It is retried, and its failures are recorded."""

    event = models.ForeignKey(
        Event, verbose_name=_("event"), on_delete=models.CASCADE, related_name="executions", editable=False
    )
    callback = models.CharField(_("callback"), max_length=250, editable=False)
    milestone = models.CharField(_("milestone"), max_length=250, blank=True, default="", editable=False)
    status = models.CharField(
        _("status"), max_length=10, choices=ExecutionStatus, default=ExecutionStatus.PENDING, editable=False
    )
    attempt = models.PositiveSmallIntegerField(_("attempt"), default=0, editable=False)
    deferrals = models.PositiveIntegerField(_("deferrals"), default=0, editable=False)
    call_key = models.CharField(_("call key"), max_length=KEY_LENGTH, default=new_call_key, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True, editable=False)
    unique_key = models.CharField(_("unique key"), max_length=KEY_LENGTH, editable=False)

    drain_order: ClassVar[int] = 40
    kind: ClassVar[str] = "callbacks"
    pause_scope: ClassVar[str] = "callback"
    pause_field: ClassVar[str] = "callback"
    performable: ClassVar[tuple[str, ...]] = (ExecutionStatus.PENDING,)

    class Meta:
        verbose_name = _("callback execution")
        verbose_name_plural = _("callback executions")
        constraints = [unique("automation_callback_unique", "unique_key")]
        permissions = [
            ("resume_callbackexecution", "Can resume callback executions"),
            ("pause_callbackexecution", "Can pause callback executions"),
        ]
        indexes = [
            *lane_indexes("automation_callback"),
            parked_index("automation_callback"),
            failed_index("automation_callback"),
            ended_index("automation_callback", "created_at", "started_at"),
        ]

    def __str__(self) -> str:
        return f"{self.callback} for event {self.event_id}"

    @property
    def idempotency_key(self) -> str:
        return f"callback:{self.call_key}"

    @classmethod
    def unfinished(cls) -> models.QuerySet[CallbackExecution]:
        return cls.objects.filter(status__in=[ExecutionStatus.PENDING, ExecutionStatus.PARKED])

    @classmethod
    def give_back(cls, pks: Sequence[int], now: datetime) -> None:
        give_back("callback", pks, now)

    @classmethod
    def load_reasons(cls, rows: Sequence[CallbackExecution]) -> None:
        super().load_reasons(rows)
        waiting = {row.pk: row for row in rows if row.wake_at is None and row.status == ExecutionStatus.PENDING}
        for pk, reason in slot_reasons("callback", list(waiting)).items() if waiting else ():
            waiting[pk].__dict__["slot_reason"] = reason

    def waiting_reason(self, now: datetime) -> str:
        if self.status == ExecutionStatus.PARKED:
            return self.parked_reason()
        if self.wake_at is None:
            return str(self.__dict__.get("slot_reason") or slot_reason("callback", self.pk))
        if not self.attempt and self.wake_at > self.created_at and not self.started_at:
            return timed(gettext("the end of its window"), self.wake_at)
        return attempt_text(self.attempt + 1, self.wake_at, self.deferrals, self.error)

    @noted("Resumed")
    def resume(self, now: datetime | None = None) -> None:
        """Retry a parked or failed execution, with all its attempts.

        Raises ``NotResumableError`` if the execution is pending or completed.
        """
        rows = CallbackExecution.objects.filter(pk=self.pk, status__in=[ExecutionStatus.PARKED, ExecutionStatus.FAILED])
        moment = aware(now or timezone.now(), "now")
        again = {"status": ExecutionStatus.PENDING, "attempt": 0, "deferrals": 0, "error": ""}
        if not revoke(rows, **again, finished_at=None, parked_at=None, wake_at=moment):
            raise NotResumableError(f"{self} is {self.status}; only a parked or failed execution can be resumed.")
        ring_after_commit(alias_of(CallbackExecution), lane_of(self))
        self.refresh_from_db()
