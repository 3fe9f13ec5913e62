"""The tables of the engine: ``Worker``, ``Arrival`` and ``Maintenance``.

``Worker`` shows which processes work, to operators and ``automation_health``; no guarantee depends on it. ``Arrival``
numbers everything that arrives for waiting runs and agents (``positions``). ``Maintenance`` has a row for each periodic
task. ``wakeable`` has the abstract base of all rows that become due.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from ..db.indexes import unique
from ..db.writer import AutomationModel
from .wakeable import Wakeable, at_text, wake_index


class Worker(AutomationModel):
    """A process that performs due rows (``worker_status``). Its times are those of the database's clock.

    ``queues``: the queues that it works on, separated by commas; empty: all. ``worked``: for each queue, how many
    seconds before ``seen_at`` the process last performed a row of it. ``stopped_at``: when it signed off.
    """

    name = models.CharField(_("name"), max_length=100, editable=False)
    runtime = models.CharField(_("runtime"), max_length=50, editable=False)
    host = models.CharField(_("host"), max_length=60, editable=False)
    pid = models.PositiveBigIntegerField(_("pid"), editable=False)
    queues = models.CharField(_("queues"), max_length=500, blank=True, default="", editable=False)
    started_at = models.DateTimeField(_("started at"), editable=False)
    seen_at = models.DateTimeField(_("seen at"), editable=False)
    stopped_at = models.DateTimeField(_("stopped at"), null=True, blank=True, editable=False)
    worked = models.JSONField(_("worked"), default=dict, blank=True, editable=False)
    performed = models.BigIntegerField(_("performed"), default=0, editable=False)

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        constraints = [unique("automation_worker_name", "name")]
        indexes = [models.Index(fields=["seen_at"], name="automation_worker_seen")]

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    @property
    def worked_at(self) -> datetime | None:
        """When it last performed a row, according to its last report."""
        return self.seen_at - timedelta(seconds=min(self.worked.values())) if self.worked else None


class Arrival(AutomationModel):
    """An occurrence, or the delivery of a signal. Its key is its position in the one order of all arrivals
    (``positions``); ``at`` is the time of the database's clock. Rows are never changed."""

    at = models.DateTimeField(editable=False)

    class Meta:
        verbose_name = _("arrival")
        verbose_name_plural = _("arrivals")

    def __str__(self) -> str:
        return f"arrival #{self.pk}"


class Maintenance(Wakeable):
    """A periodic task of the engine (``maintenance``). ``position``: where its next time slice continues; null: at the
    beginning. ``done``: how many rows it has removed or corrected. ``failures``: how often in a row it has raised;
    ``error``: what it raised last."""

    name = models.CharField(_("name"), max_length=100, editable=False)
    position = models.JSONField(_("position"), null=True, blank=True, editable=False)
    completed_at = models.DateTimeField(_("completed at"), null=True, blank=True, editable=False)
    done = models.BigIntegerField(_("done"), default=0, editable=False)
    failures = models.PositiveSmallIntegerField(_("failures"), default=0, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)

    drain_order: ClassVar[int] = 90
    queue: ClassVar[str] = "maintenance"

    class Meta:
        verbose_name = _("maintenance task")
        verbose_name_plural = _("maintenance tasks")
        constraints = [unique("automation_maintenance_name", "name")]
        indexes = [wake_index("automation_maintenance")]

    def __str__(self) -> str:
        return f"maintenance {self.name!r}"

    @classmethod
    def unfinished(cls) -> models.QuerySet[Any]:
        return cls.objects.all()

    @property
    def is_finished(self) -> bool:
        return False

    def waiting_reason(self, now: datetime) -> str:
        return "" if self.wake_at is None else f"its next time slice, {at_text(self.wake_at)}"
