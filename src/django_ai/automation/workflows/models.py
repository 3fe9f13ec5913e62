"""The tables of workflows: ``WorkflowRun``, ``Wait`` (one thing that a suspended run waits for), ``StepExecution`` (one
attempt of a step: the history, and the record of what a run has consumed), and ``Signal`` (a message on its way, or in
the inbox of a run)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from django.db import models, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..db.indexes import PartialIndex, unique
from ..db.writer import AutomationModel, WriterQuerySet, alias_of
from ..events.declarations import sources_of
from ..events.models import Event
from ..exceptions import NotResumableError, UnknownRunError
from ..queues.causation import own_run_pk
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..queues.wakeable import Wakeable, at_text, entity_index, failed_index, parked_index, wake_index
from ..state.encryption import EncryptedJSONField
from ..values.clock import Clock, aware
from ..values.digests import KEY_LENGTH, new_call_key
from ..values.text import last_line
from .current import KIND
from .definitions import workflow_of
from .wait_keys import EVENT_CHANNEL, SUBFLOW, channel_key, subflow_channel


class WorkflowStatus(models.TextChoices):
    RUNNING = "running", _("Running")  # a step is due or running
    WAITING = "waiting", _("Waiting")  # for a time: planned, asleep, or in the backoff of a retry
    SUSPENDED = "suspended", _("Suspended")  # for a signal or an event
    COMPLETED = "completed", _("Completed")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")
    WITHDRAWN = "withdrawn", _("Withdrawn")  # its event withdrew it before it started: ``error`` says why
    PARKED = "parked", _("Parked")  # for an operator or for code: ``error`` says why


FINISHED = (WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED, WorkflowStatus.WITHDRAWN)


class WorkflowRunQuerySet(WriterQuerySet["WorkflowRun"]):
    def unfinished(self) -> WorkflowRunQuerySet:
        return self.exclude(status__in=FINISHED)

    def not_started(self) -> WorkflowRunQuerySet:
        """Planned runs whose first step has not committed yet.

        Without the run whose step runs now: it has started, and its own saves may make its event's condition false.
        """
        planned, own = self.filter(planned=True, started_at=None, status=WorkflowStatus.WAITING), own_run_pk(KIND)
        return planned if own is None else planned.exclude(pk=own)

    def waiting_under(self, keys: list[str]) -> WorkflowRunQuerySet:
        """Runs that wait under one of ``keys`` and are not leased."""
        return self.filter(pk__in=Wait.objects.under(keys).values("run"))


class WorkflowRun(Wakeable):
    """One run of a workflow."""

    name = models.CharField(_("name"), max_length=200, editable=False)
    version = models.CharField(_("version"), max_length=50, default="1", editable=False)
    status = models.CharField(
        _("status"), max_length=10, choices=WorkflowStatus, default=WorkflowStatus.RUNNING, editable=False
    )
    current_step = models.CharField(_("current step"), max_length=200, blank=True, default="", editable=False)
    data = EncryptedJSONField(_("data"), default=dict, blank=True, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    visit = models.PositiveIntegerField(_("visit"), default=1, editable=False)
    call_key = models.CharField(_("call key"), max_length=KEY_LENGTH, default=new_call_key, editable=False)
    attempt = models.PositiveSmallIntegerField(_("attempt"), default=0, editable=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True, editable=False)

    event = models.ForeignKey(
        Event,
        verbose_name=_("event"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="workflow_runs",
        editable=False,
    )
    planned = models.BooleanField(_("planned"), default=False, editable=False)
    entity_type = models.CharField(_("entity type"), max_length=200, blank=True, default="", editable=False)
    entity_id = models.CharField(_("entity id"), max_length=255, blank=True, default="", editable=False)
    origin_key = models.CharField(_("origin key"), max_length=KEY_LENGTH, null=True, blank=True, editable=False)
    parent = models.ForeignKey(
        "self",
        verbose_name=_("parent"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="children",
        editable=False,
    )
    parent_channel = models.CharField(_("parent channel"), max_length=200, blank=True, default="", editable=False)
    caused_by = models.CharField(_("caused by"), max_length=200, blank=True, default="", editable=False)
    depth = models.PositiveSmallIntegerField(_("depth"), default=0, editable=False)
    holds_claims = models.BooleanField(_("holds claims"), default=False, editable=False)
    position = models.BigIntegerField(_("position"), default=0, editable=False)
    wake_reason = models.CharField(_("wake reason"), max_length=10, default="first", editable=False)
    wake_ref = models.BigIntegerField(_("wake ref"), null=True, blank=True, editable=False)
    wake_step = models.CharField(_("wake step"), max_length=200, blank=True, default="", editable=False)

    objects = WorkflowRunQuerySet.as_manager()  # type: ignore[misc, assignment]

    drain_order: ClassVar[int] = 30
    queue: ClassVar[str] = "workflows"

    class Meta:
        verbose_name = _("workflow run")
        verbose_name_plural = _("workflow runs")
        constraints = [unique("automation_run_origin", "origin_key")]
        permissions = [
            ("resume_workflowrun", "Can resume workflow runs"),
            ("cancel_workflowrun", "Can cancel workflow runs"),
            ("view_data_workflowrun", "Can view Contexts of workflow runs"),
        ]
        indexes = [
            wake_index("automation_run"),
            parked_index("automation_run"),
            failed_index("automation_run"),
            entity_index("automation_run"),
            models.Index(fields=["name", "created_at"], name="automation_run_name"),
        ]

    def __str__(self) -> str:
        return f"{self.name} #{self.pk}"

    @property
    def idempotency_key(self) -> str:
        """The stable key of the current step visit: the same for each of its attempts."""
        return f"workflow:{self.call_key}:{self.visit}"

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @classmethod
    def unfinished(cls) -> WorkflowRunQuerySet:
        return cls.objects.unfinished().prefetch_related("waits")

    def waiting_reason(self, now: datetime) -> str:
        if self.status == WorkflowStatus.PARKED:
            return self.parked_reason()
        if self.status == WorkflowStatus.SUSPENDED:
            found = [wait.description for wait in self.waits.all() if wait.visit == self.visit]
            return " or ".join(each for each in found if each)
        if self.wake_at is None:
            return ""
        if self.planned and self.started_at is None:
            what = "its date"
        else:
            what = f"attempt {self.attempt + 1}" if self.attempt else "its timer"
        return f"{what}, {at_text(self.wake_at)}"

    def record_loss(self, clock: Clock) -> None:
        """Record the lost attempt in the history, once for each loss."""
        lost = self.steps.filter(visit=self.visit, attempt=self.attempt + 1, outcome=StepExecution.LOST).count()
        if lost < self.losses:
            StepExecution.objects.create(
                run=self,
                step=self.current_step,
                visit=self.visit,
                attempt=self.attempt + 1,
                started=None,
                finished=clock(),
                outcome=StepExecution.LOST,
                error="The worker died or hung: its lease ran out.",
                wake_reason=self.wake_reason,
                wake_ref=self.wake_ref,
            )

    @property
    def has_no_context(self) -> bool:
        """Whether its Context has still to be made from the event that starts it."""
        return self.event_id is not None and self.started_at is None

    @property
    def resumed_status(self) -> WorkflowStatus:
        """The status with which a parked run resumes."""
        if self.waits.filter(visit=self.visit).exists():
            return WorkflowStatus.SUSPENDED
        if self.planned and self.started_at is None:
            return WorkflowStatus.WAITING  # still planned: it moves with its date
        return WorkflowStatus.RUNNING

    def resume(self, now: datetime | None = None, *, step: str | None = None, again: bool = False) -> None:
        """Resume a parked run at its current step, or retry the last step of a failed one, with all its attempts.

        ``step``: continue at this step instead, as after a ``goto``, and wait for nothing else.
        ``again``: also at a step that has started a child run which completed or is unfinished, and may start another.

        Raises ``NotResumableError`` for a run in another status and for such a step without ``again``, and
        ``UnknownRunError`` for a run that was removed; with ``step`` also ``UnknownWorkflowError`` and
        ``UnknownStepError``.
        """
        moment = aware(now or timezone.now(), "now")
        changes: dict[str, Any] = {"status": self.resumed_status}
        end = self._end_of_child()
        newer_end = None if end is None else self._newer_end(end)
        rejoined = end if newer_end is None and end is not None and self._is_child_unfinished(end) else None
        if step is not None:
            if newer_end is not None or rejoined is not None:
                raise NotResumableError(
                    f"{self} has not received the final end of its child yet; another step could start a second child. "
                    f"Resume it without a step: manage.py automation_resume workflow --failed --pk {self.pk}."
                )
            changes = {"status": WorkflowStatus.RUNNING, **self._entry_at(step)}
            if not again and (child := self._child_started_by(step)) is not None:
                raise NotResumableError(
                    f"{self}: step {step!r} has started {child}, which is {child.status}; run again, it may start a "
                    "second one. Resume the run at a later step, without a step, or with again=True (--again)."
                )
        elif newer_end is not None:
            changes["wake_ref"] = newer_end.pk
        elif rejoined is not None:
            changes["status"] = WorkflowStatus.SUSPENDED
        with transaction.atomic(using=alias_of(WorkflowRun)):
            changed = revoke(
                WorkflowRun.objects.filter(pk=self.pk, status__in=[WorkflowStatus.PARKED, WorkflowStatus.FAILED]),
                **changes,
                attempt=0,
                error="",
                finished_at=None,
                parked_at=None,
                wake_at=moment,
            )
            if changed and step is None and newer_end is not None:
                inbox = Signal.objects.filter(run=self.pk, name=newer_end.name, pk__lte=newer_end.pk, consumed_at=None)
                revoke(inbox, consumed_at=moment, delivered_at=moment, wake_at=None)
            if changed and step is None and rejoined is not None:
                self._wait_for_child(rejoined)
        if not changed:
            status = WorkflowRun.objects.filter(pk=self.pk).values_list("status", flat=True).first()
            if status is None:
                raise UnknownRunError(f"{self} was removed; there is nothing to resume.")
            raise NotResumableError(f"{self} is {status}; only a parked or failed run can be resumed.")
        if step is not None:
            self.waits.all().delete()
        ring_after_commit(alias_of(WorkflowRun), WorkflowRun)
        self.refresh_from_db()

    def _end_of_child(self) -> Signal | None:
        """Return the end of a child that has woken the run at its current step, or None."""
        row = WorkflowRun.objects.filter(pk=self.pk, wake_reason="signal").only("wake_ref").first()
        end = None if row is None else Signal.objects.filter(pk=row.wake_ref or 0, run=self.pk).first()
        return end if end is not None and end.name.startswith(f"{SUBFLOW}:") else None

    def _newer_end(self, end: Signal) -> Signal | None:
        """Return a later end of the same child, which was resumed meanwhile, or None."""
        return Signal.objects.filter(run=self.pk, name=end.name, consumed_at=None, pk__gt=end.pk).last()

    def _is_child_unfinished(self, end: Signal) -> bool:
        """Return whether that child was resumed and has not ended yet."""
        return WorkflowRun.objects.unfinished().filter(parent=self.pk, parent_channel=end.name).exists()

    def _wait_for_child(self, end: Signal) -> None:
        """Register a wait for the next end of the child, at the step that the last end has woken."""
        row = WorkflowRun.objects.only("visit", "current_step").get(pk=self.pk)
        steps = {"then": row.current_step, "on_timeout": row.current_step}
        key = channel_key(end.name)
        Wait.objects.create(run_id=self.pk, visit=row.visit, channel=end.name, key=key, **steps)

    def _child_started_by(self, step: str) -> WorkflowRun | None:
        """Return a child that ``step`` has started and that has completed or is unfinished, or None."""
        visits = self.steps.filter(step=step, outcome="subflow").values_list("visit", flat=True)
        channels = [subflow_channel(self.pk, visit) for visit in visits]
        children = WorkflowRun.objects.filter(parent=self.pk, parent_channel__in=channels)
        return children.exclude(status__in=[WorkflowStatus.FAILED, WorkflowStatus.CANCELLED]).last()

    def _entry_at(self, step: str) -> dict[str, Any]:
        """Return the changes that let the run enter ``step`` next, as a new visit."""
        workflow_of(self).step(step)
        return {
            "current_step": step,
            "visit": models.F("visit") + 1,
            "wake_reason": "first",
            "wake_ref": None,
            "wake_step": "",
        }


class WaitQuerySet(WriterQuerySet["Wait"]):
    def open(self) -> WaitQuerySet:
        """Waits of runs that are suspended and not leased."""
        return self.filter(run__status=WorkflowStatus.SUSPENDED, run__lease=None, visit=models.F("run__visit"))

    def under(self, keys: list[str]) -> WaitQuerySet:
        return self.open().filter(key__in=keys)

    def not_consumed(self, reason: str, ref: int) -> WaitQuerySet:
        """Waits of runs that have not consumed this signal or event."""
        consumed = StepExecution.objects.filter(run=models.OuterRef("run"), wake_reason=reason, wake_ref=ref)
        return self.filter(~models.Exists(consumed))


class Wait(AutomationModel):
    """One thing that a suspended run waits for.

    The commit of its step inserts it; the transaction that wakes the run deletes all its waits. A wait of an earlier
    ``visit`` has no effect.
    """

    run = models.ForeignKey(WorkflowRun, on_delete=models.CASCADE, related_name="waits", editable=False)
    visit = models.PositiveIntegerField(editable=False)
    channel = models.CharField(max_length=210, editable=False)
    key = models.CharField(max_length=KEY_LENGTH, editable=False)
    match = models.JSONField(null=True, blank=True, editable=False)
    residual = models.BooleanField(default=False, editable=False)
    namespace = models.CharField(max_length=100, blank=True, default="", editable=False)
    deadline = models.DateTimeField(null=True, blank=True, editable=False)
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
    def description(self) -> str:
        """The signal, event or child that it waits for; empty for a child that can no longer report its end."""
        kind, _, name = self.channel.partition(":")
        if kind == SUBFLOW:
            child = self.run.children.filter(parent_channel=self.channel).first()
            reports = Signal.unfinished().filter(run=self.run_id, name=self.channel)
            can_report = child is not None and (not child.is_finished or reports.exists())
            what = f"its child {child}" if can_report else ""
        elif self.channel.startswith(EVENT_CHANNEL):
            what = f"the event {name!r}{f' with {self.match}' if self.match else ''}"
            if not sources_of(name):
                what += " (which no model declares)"
        else:
            what = f"the signal {self.channel!r}"
        return f"{what}, until {at_text(self.deadline)}" if what and self.deadline else what


class StepExecution(AutomationModel):
    """One attempt of one step.

    Rows with a ``wake_ref`` also record what the run has consumed. While the run may still wait, they stay as long as
    the signal or event, which would be consumed again otherwise.
    """

    LOST: ClassVar[str] = "lost"

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
    )
    sent_at = models.DateTimeField(_("sent at"), default=timezone.now, editable=False)
    delivered_at = models.DateTimeField(_("delivered at"), null=True, blank=True, editable=False)
    position = models.BigIntegerField(_("position"), null=True, blank=True, editable=False)
    consumed_at = models.DateTimeField(_("consumed at"), null=True, blank=True, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    caused_by = models.CharField(_("caused by"), max_length=200, blank=True, default="", editable=False)

    drain_order: ClassVar[int] = 20
    queue: ClassVar[str] = "signals"

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
            return f"run {self.run_id}, to wait for {self.name!r}"
        if self.error:
            return f"an operator, to resume it: {last_line(self.error)}"
        return f"its delivery, {at_text(self.wake_at)}" if self.wake_at else ""

    def resume(self, now: datetime | None = None) -> None:
        """Deliver a parked signal again. Raises ``NotResumableError`` for one that was delivered."""
        rows = Signal.objects.filter(pk=self.pk, delivered_at=None)
        if not revoke(rows, wake_at=aware(now or timezone.now(), "now"), error="", parked_at=None):
            raise NotResumableError(f"{self} was delivered already; only an undelivered signal can be resumed.")
        ring_after_commit(alias_of(Signal), Signal)
        self.refresh_from_db()
