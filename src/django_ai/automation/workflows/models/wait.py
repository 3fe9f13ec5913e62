"""``Wait``: one thing that a suspended run waits for, or an event that cancels a run."""

from __future__ import annotations

from datetime import datetime

from django.db import models
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ...db.writer import AutomationModel, WriterQuerySet
from ...events.sources import event_sources
from ...queues.wakeable import timed, until_text
from ...values.digests import KEY_LENGTH
from ..statuses import FINISHED, WorkflowStatus
from ..wait_keys import EVENT_CHANNEL, SUBFLOW, WHOLE_RUN
from .run import WorkflowRun
from .signal import Signal
from .step_execution import StepExecution

IS_OPEN = models.Q(run__status=WorkflowStatus.SUSPENDED, run__lease=None, visit=models.F("run__visit"))
IS_CANCELLING = models.Q(visit=WHOLE_RUN) & ~models.Q(run__status__in=FINISHED)


class WaitQuerySet(WriterQuerySet["Wait"]):
    def open(self) -> WaitQuerySet:
        """Waits of runs that are suspended and not leased."""
        return self.filter(IS_OPEN)

    def cancelling(self) -> WaitQuerySet:
        """The events that cancel unfinished runs."""
        return self.filter(IS_CANCELLING)

    def of_visits(self) -> WaitQuerySet:
        """What runs wait for, without what cancels them."""
        return self.filter(visit__gt=WHOLE_RUN)

    def under(self, keys: list[str]) -> WaitQuerySet:
        return self.open().filter(key__in=keys)

    def not_consumed(self, reason: str, ref: int) -> WaitQuerySet:
        """Waits of runs that have not consumed this signal or event."""
        consumed = StepExecution.objects.filter(run=models.OuterRef("run"), wake_reason=reason, wake_ref=ref)
        return self.filter(~models.Exists(consumed))


class Wait(AutomationModel):
    """One thing that a suspended run waits for.

    The commit of its step inserts it; the transaction that wakes the run deletes all its waits. A wait of an earlier
    ``visit`` has no effect. A choice has a wait for each branch, and one without a branch for the timeout of the whole.
    One that only time ends has neither channel nor key.

    With the visit ``WHOLE_RUN`` it is an event that cancels the run, if its position is after ``since``. It stays until
    the run has completed or is cancelled.
    """

    run = models.ForeignKey(WorkflowRun, on_delete=models.CASCADE, related_name="waits", editable=False)
    visit = models.PositiveIntegerField(editable=False)
    branch = models.CharField(max_length=50, blank=True, default="", editable=False)
    channel = models.CharField(max_length=210, editable=False)
    key = models.CharField(max_length=KEY_LENGTH, editable=False)
    match = models.JSONField(null=True, blank=True, editable=False)
    residual = models.BooleanField(default=False, editable=False)
    namespace = models.CharField(max_length=100, blank=True, default="", editable=False)
    deadline = models.DateTimeField(null=True, blank=True, editable=False)
    since = models.BigIntegerField(default=0, editable=False)
    then = models.CharField(max_length=200, editable=False)
    on_timeout = models.CharField(max_length=200, editable=False)

    objects = WaitQuerySet.as_manager()  # type: ignore[misc, assignment]

    class Meta:
        verbose_name = _("wait")
        verbose_name_plural = _("waits")
        indexes = [models.Index(fields=["key"], name="automation_wait_key")]

    def __str__(self) -> str:
        return f"wait of {self.run_id} for {self.channel!r}"

    def is_over(self, now: datetime) -> bool:
        """Return whether its deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    @property
    def is_timer(self) -> bool:
        """Whether nothing but time ends it."""
        return not self.channel

    @property
    def is_whole(self) -> bool:
        """Whether it is the timeout of a whole choice."""
        return not self.channel and not self.branch

    @property
    def description(self) -> str:
        """The signal, event, child or time that it waits for, and its branch; empty for a child that can no longer
        report its end."""
        return self.describe()

    def describe(self, child_name: str | None = None) -> str:
        """Return the ``description``; ``child_name`` stands for a child run, which is read otherwise."""
        kind, _, name = self.channel.partition(":")
        if self.is_timer:
            return timed(gettext("its timer"), self.deadline) + f" ({self.branch})" if self.deadline else ""
        if kind == SUBFLOW and child_name is not None:
            what = child_name
        elif kind == SUBFLOW:
            child = self.run.children.filter(parent_channel=self.channel).first()
            reports = Signal.unfinished().filter(run=self.run_id, name=self.channel)
            can_report = child is not None and (not child.is_finished or reports.exists())
            what = gettext("its child %s") % child if can_report else ""
        elif self.channel.startswith(EVENT_CHANNEL):
            what = gettext("the event %s") % repr(name)
            if self.match:
                what = gettext("%(event)s with %(match)s") % {"event": what, "match": self.match}
            if not event_sources(name):
                what = gettext("%s (which no code declares)") % what
        else:
            what = gettext("the signal %s") % repr(self.channel)
        if what and self.branch:
            what += f" ({self.branch})"
        return until_text(what, self.deadline) if what else ""
