"""``Signal``: a message on its way, or in the inbox of a run."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ...db.indexes import PartialIndex
from ...db.writer import alias_of
from ...exceptions import NotResumableError
from ...queues.history import noted
from ...queues.lease import revoke
from ...queues.notifier import ring_after_commit
from ...queues.wakeable import Wakeable, timed, wake_index
from ...state.encryption import EncryptedJSONField
from ...values.clock import aware
from ...values.text import last_line
from .run import WorkflowRun


class Signal(Wakeable):
    """A message to all runs that wait for ``name``, or to the inbox of one run."""

    name = models.CharField(_("name"), max_length=200, editable=False)
    payload = EncryptedJSONField(_("payload"), null=True, blank=True, editable=False)
    run = models.ForeignKey(
        WorkflowRun,
        verbose_name=_("run"),
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="inbox",
        editable=False,
        db_index=False,  # see ``Meta.indexes``
    )
    sent_at = models.DateTimeField(_("sent at"), default=timezone.now, editable=False)
    delivered_at = models.DateTimeField(_("delivered at"), null=True, blank=True, editable=False)
    position = models.BigIntegerField(_("position"), null=True, blank=True, editable=False)
    consumed_at = models.DateTimeField(_("consumed at"), null=True, blank=True, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    caused_by = models.CharField(_("caused by"), max_length=200, blank=True, default="", editable=False)

    warning: str = ""
    """Why its run may never receive it, set by ``engine.signal``; empty if it may. Not stored."""

    drain_order: ClassVar[int] = 20
    kind: ClassVar[str] = "signals"

    class Meta:
        verbose_name = _("signal")
        verbose_name_plural = _("signals")
        permissions = [
            ("resume_signal", "Can resume parked signals"),
            ("view_data_signal", "Can view payloads of signals"),
        ]
        indexes = [
            wake_index("automation_signal"),
            PartialIndex(
                fields=["parked_at"], name="automation_signal_parked", condition=models.Q(parked_at__isnull=False)
            ),
            models.Index(fields=["name", "position"], name="automation_signal_position"),
            PartialIndex(fields=["run"], name="automation_signal_run", condition=models.Q(run__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"signal {self.name!r} #{self.pk}"

    @classmethod
    def unfinished(cls) -> models.QuerySet[Signal]:
        """Return signals that are not delivered yet, or are in the inbox of a run that may still wait for them."""
        inbox = models.Q(consumed_at=None, run__in=WorkflowRun.objects.unfinished())
        return cls.objects.filter(models.Q(delivered_at=None) | inbox)

    def waiting_reason(self, now: datetime) -> str:
        if self.delivered_at is not None:
            return gettext("run %(run)s, to wait for %(signal)s") % {"run": self.run_id, "signal": repr(self.name)}
        if self.error:
            return gettext("an operator, to resume it: %s") % last_line(self.error)
        return timed(gettext("its delivery"), self.wake_at) if self.wake_at else ""

    @noted("Resumed")
    def resume(self, now: datetime | None = None) -> None:
        """Deliver a parked signal again. Raises ``NotResumableError`` for one that was delivered."""
        rows = Signal.objects.filter(pk=self.pk, delivered_at=None)
        if not revoke(rows, wake_at=aware(now or timezone.now(), "now"), error="", parked_at=None):
            raise NotResumableError(f"{self} was delivered already; only an undelivered signal can be resumed.")
        ring_after_commit(alias_of(Signal), Signal)
        self.refresh_from_db()
