"""``StepExecution``: one attempt of a step. The rows are the history of a run, and the record of what it consumed."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from ...db.indexes import PartialIndex
from ...db.writer import AutomationModel
from ...state.encryption import EncryptedJSONField
from .. import statuses
from .run import WorkflowRun


class StepExecution(AutomationModel):
    """One attempt of one step, or what a run has received while it waits for more.

    Rows with a ``wake_ref`` also record what the run has consumed. While the run may still wait, they stay as long as
    the signal or event, which would be consumed again otherwise.
    """

    LOST: ClassVar[str] = statuses.LOST
    ARRIVED: ClassVar[str] = "arrived"
    """The outcome of the record of what a branch of ``wait_all`` has received; its ``step`` is the branch."""

    run = models.ForeignKey(
        WorkflowRun, verbose_name=_("run"), on_delete=models.CASCADE, related_name="steps", editable=False
    )
    step = models.CharField(_("step"), max_length=200, editable=False)
    visit = models.PositiveIntegerField(_("visit"), editable=False)
    attempt = models.PositiveSmallIntegerField(_("attempt"), editable=False)
    started = models.DateTimeField(_("started"), null=True, editable=False)
    finished = models.DateTimeField(_("finished"), editable=False)
    outcome = models.CharField(_("outcome"), max_length=20, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    wake_reason = models.CharField(_("wake reason"), max_length=10, default="first", editable=False)
    wake_ref = models.BigIntegerField(_("wake ref"), null=True, blank=True, editable=False)

    before = EncryptedJSONField(_("before the visit"), null=True, blank=True, editable=False)
    """What the run was before this visit, with its Context (``visits.py``); None of later attempts."""

    class Meta:
        verbose_name = _("step execution")
        verbose_name_plural = _("step executions")
        ordering = ["pk"]
        indexes = [
            PartialIndex(
                fields=["run", "wake_ref"], name="automation_step_consumed", condition=models.Q(wake_ref__isnull=False)
            )
        ]

    def __str__(self) -> str:
        return f"{self.step} ({self.outcome})"
