"""``CapturedWrite``: the outbox of captured writes. A database trigger inserts a row for each row of a table that is
inserted, updated or deleted, in the transaction of that write.

A worker performs it: it records the events of the entity as a ``save()`` does, and deletes the row. A ``save()`` of
Django records them itself and deletes the rows that its own statements have caused. So a row that stays was written by
something that sends no signals.

``entity_type`` and ``entity_id`` name the entity by its root table (``events/capture.py``), and ``model`` is the model
whose table was written. ``old`` has column values before the write, as text: those that an update has changed, all for
a deletion. ``transaction`` is the same in all rows of one transaction, as far as it is known: such rows are one write.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ...db.writer import alias_of
from ...exceptions import NotResumableError
from ...queues.history import noted
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...queues.wakeable import Wakeable, parked_index, wake_index
from ...values.clock import aware


class WriteOperation(models.TextChoices):
    INSERT = "insert", _("Insert")
    UPDATE = "update", _("Update")
    DELETE = "delete", _("Delete")


class CapturedWriteStatus(models.TextChoices):
    PENDING = "pending", _("Pending")
    PARKED = "parked", _("Parked")


class CapturedWrite(Wakeable):
    """One write to one row of a captured table, which no signal of Django has announced."""

    entity_type = models.CharField(_("entity type"), max_length=200, editable=False)
    entity_id = models.CharField(_("entity id"), max_length=255, editable=False)
    model = models.CharField(_("model"), max_length=200, editable=False)
    operation = models.CharField(_("operation"), max_length=10, choices=WriteOperation, editable=False)
    transaction = models.BigIntegerField(_("transaction"), null=True, blank=True, editable=False)
    old = models.JSONField(_("old values"), null=True, blank=True, editable=False)
    caused_by = models.CharField(_("caused by"), max_length=200, blank=True, default="", editable=False)
    depth = models.PositiveSmallIntegerField(_("depth"), default=0, editable=False)
    written_at = models.DateTimeField(_("written at"), editable=False)
    status = models.CharField(
        _("status"),
        max_length=10,
        choices=CapturedWriteStatus,
        default=CapturedWriteStatus.PENDING,
        editable=False,
    )
    error = models.TextField(_("error"), blank=True, default="", editable=False)

    drain_order: ClassVar[int] = 6
    kind: ClassVar[str] = "events"
    claim_batches: ClassVar[int] = 25

    class Meta:
        verbose_name = _("captured write")
        verbose_name_plural = _("captured writes")
        permissions = [
            ("resume_capturedwrite", "Can resume captured writes"),
            ("view_data_capturedwrite", "Can view the old values of captured writes"),
        ]
        indexes = [
            wake_index("automation_captured"),
            parked_index("automation_captured"),
            models.Index(fields=["entity_id", "entity_type"], name="automation_captured_entity"),
        ]

    def __str__(self) -> str:
        return f"{self.operation} of {self.model} {self.entity_id}"

    @classmethod
    def unfinished(cls) -> models.QuerySet[CapturedWrite]:
        return cls.objects.all()

    @property
    def is_finished(self) -> bool:
        return False  # a row that was performed is deleted

    def waiting_reason(self, now: datetime) -> str:
        return self.parked_reason() if self.status == CapturedWriteStatus.PARKED else ""

    @noted("Resumed")
    def resume(self, now: datetime | None = None) -> None:
        """Make a parked row due now. Raises ``NotResumableError`` if it is not parked."""
        parked = CapturedWrite.objects.filter(pk=self.pk, status=CapturedWriteStatus.PARKED)
        moment = aware(now or timezone.now(), "now")
        if not revoke(parked, status=CapturedWriteStatus.PENDING, error="", parked_at=None, wake_at=moment):
            raise NotResumableError(f"{self} is {self.status}; only a parked one can be resumed.")
        ring_after_commit(alias_of(CapturedWrite), CapturedWrite)
        self.refresh_from_db()
