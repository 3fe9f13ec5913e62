"""``WorkflowRun``: one run of a workflow, what it waits for, and how it is resumed.

The other tables of workflows refer to a run, so it reaches their rows through its relations: ``waits``, ``steps``,
``inbox``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models, transaction
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ...db.indexes import PartialIndex, unique
from ...db.writer import WriterQuerySet, alias_of
from ...events.models import Event
from ...exceptions import NotResumableError, UnknownWorkflowError
from ...queues.causation import own_run_pk
from ...queues.history import noted
from ...queues.lanes import lane_indexes, lane_of
from ...queues.lease import revoke
from ...queues.limits.reasons import slot_reason, slot_reasons
from ...queues.limits.release import give_back
from ...queues.notifier import ring_after_commit
from ...queues.tracing import trace_context_field
from ...queues.wakeable import (
    attempt_text,
    ended_index,
    entity_index,
    failed_index,
    parked_index,
    timed,
    until_text,
)
from ...state.encryption import EncryptedJSONField
from ...values.clock import Clock, aware
from ...values.digests import KEY_LENGTH, new_call_key
from ...values.text import last_line
from ..current_run import KIND, WakeReason
from ..definitions import WorkflowDefinition, workflow_of
from ..run_access import RunAccess
from ..statuses import DEFERRED, FINISHED, LOST, MAY_AWAIT_SLOT, STARTING, WorkflowStatus
from ..wait_keys import SUBFLOW, WHOLE_RUN, branch_of, channel_key, subflow_channel
from .joined_reasons import all_of, one_of

if TYPE_CHECKING:
    from .signal import Signal


class WorkflowRunQuerySet(WriterQuerySet["WorkflowRun"]):
    def unfinished(self) -> WorkflowRunQuerySet:
        return self.exclude(status__in=FINISHED)

    def not_started(self) -> WorkflowRunQuerySet:
        """Planned runs whose first step has not committed yet.

        Without the run whose step runs now: it has started, and its own saves may make its event's condition false.
        """
        waiting = self.filter(planned=True, started_at=None, status=WorkflowStatus.WAITING, ending__isnull=True)
        planned, own = waiting, own_run_pk(KIND)
        return planned if own is None else planned.exclude(pk=own)


class WorkflowRun(RunAccess):
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
    deferrals = models.PositiveIntegerField(_("deferrals"), default=0, editable=False)
    failed_evaluations = models.PositiveSmallIntegerField(_("failed evaluations"), default=0, editable=False)
    progress = models.FloatField(_("progress"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True, editable=False)
    deadline = models.DateTimeField(_("deadline"), null=True, blank=True, editable=False)

    event = models.ForeignKey(
        Event,
        verbose_name=_("event"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="workflow_runs",
        editable=False,
        db_index=False,  # see ``Meta.indexes``
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
        db_index=False,
    )
    parent_channel = models.CharField(_("parent channel"), max_length=200, blank=True, default="", editable=False)
    caused_by = models.CharField(_("caused by"), max_length=200, blank=True, default="", editable=False)
    trace_context = trace_context_field()
    depth = models.PositiveSmallIntegerField(_("depth"), default=0, editable=False)
    holds_claims = models.BooleanField(_("holds claims"), default=False, editable=False)
    position = models.BigIntegerField(_("position"), default=0, editable=False)
    wake_reason = models.CharField(_("wake reason"), max_length=10, default="first", editable=False)
    wake_ref = models.BigIntegerField(_("wake ref"), null=True, blank=True, editable=False)
    wake_step = models.CharField(_("wake step"), max_length=200, blank=True, default="", editable=False)
    branches = EncryptedJSONField(_("branches"), null=True, blank=True, editable=False)
    ending = EncryptedJSONField(_("ending"), null=True, blank=True, editable=False)

    objects = WorkflowRunQuerySet.as_manager()  # type: ignore[misc, assignment]

    drain_order: ClassVar[int] = 30
    kind: ClassVar[str] = "workflows"
    pause_scope: ClassVar[str] = "workflow"
    performable: ClassVar[tuple[str, ...]] = (WorkflowStatus.RUNNING, WorkflowStatus.WAITING, WorkflowStatus.SUSPENDED)

    class Meta:
        verbose_name = _("workflow run")
        verbose_name_plural = _("workflow runs")
        constraints = [unique("automation_run_origin", "origin_key")]
        permissions = [
            ("resume_workflowrun", "Can resume workflow runs"),
            ("cancel_workflowrun", "Can cancel workflow runs"),
            ("pause_workflowrun", "Can pause workflow runs"),
            ("start_workflowrun", "Can start workflow runs"),
            ("signal_workflowrun", "Can send signals to workflow runs"),
            ("edit_workflowrun", "Can edit Contexts of workflow runs, and fork runs"),
            ("view_data_workflowrun", "Can view Contexts of workflow runs"),
        ]
        indexes = [
            *lane_indexes("automation_run"),
            parked_index("automation_run"),
            failed_index("automation_run"),
            ended_index("automation_run", "planned", "created_at", "started_at"),
            entity_index("automation_run"),
            models.Index(fields=["name", "created_at"], name="automation_run_name"),
            # On PostgreSQL each transition of a run makes an entry in each index that holds the run.
            PartialIndex(fields=["event"], name="automation_run_event", condition=models.Q(event__isnull=False)),
            PartialIndex(fields=["parent"], name="automation_run_parent", condition=models.Q(parent__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.name} #{self.pk}"

    @property
    def idempotency_key(self) -> str:
        """The stable key of the current step visit: the same for each of its attempts."""
        key = f"workflow:{self.call_key}:{self.visit}"
        if self.ending is not None and self.ending.get("visit") == self.visit:
            # ``@on_fail`` and ``@on_cancel`` run in the visit of the step at which the run has ended.
            return f"{key}:{self.ending['status']}:{self.ending['seq']}"
        return key

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def path(self) -> str:
        """The path that the run is on, or on which it has ended because the path failed or was ended at once:
        ``"@on_fail"``, ``"@on_cancel"``, or empty."""
        if self.ending is None:
            return ""
        return "@on_fail" if self.ending.get("status") == WorkflowStatus.FAILED else "@on_cancel"

    @property
    def error_summary(self) -> str:
        """Why it failed or was cancelled, in one line; then what became of its path, if that did not end itself."""
        own = str((self.ending or {}).get("error", "")).rstrip()
        rest = self.error.removeprefix(own).strip() if own and self.error.startswith(own) else ""
        what, found, problem = rest.partition(":\n\n")  # see ``paths``
        if not found:
            return super().error_summary
        return f"{last_line(own)} ({what[:1].lower()}{what[1:]}: {last_line(problem)})"

    @classmethod
    def unfinished(cls) -> WorkflowRunQuerySet:
        return cls.objects.unfinished().prefetch_related("waits")

    @classmethod
    def give_back(cls, pks: Sequence[int], now: datetime) -> None:
        give_back(KIND, pks, now)

    @classmethod
    def load_reasons(cls, rows: Sequence[WorkflowRun]) -> None:
        super().load_reasons(rows)
        waiting = {row.pk: row for row in rows if row.wake_at == row.next_deadline and row.status in MAY_AWAIT_SLOT}
        for pk, reason in slot_reasons(KIND, list(waiting)).items() if waiting else ():
            waiting[pk].__dict__["slot_reason"] = reason

    def waiting_reason(self, now: datetime) -> str:
        return self.with_path(self._waiting_reason())

    def with_path(self, reason: str) -> str:
        """Return the reason why the run waits, and whether it is on its path."""
        if not reason or not self.path:
            return reason
        return gettext("%(reason)s (on the path of its %(hook)s)") % {"reason": reason, "hook": self.path}

    def _waiting_reason(self) -> str:
        if self.status == WorkflowStatus.PARKED:
            return self.parked_reason()
        if self.status == WorkflowStatus.SUSPENDED:
            return self.suspended_reason()
        if self.wake_at is None:
            return self._waits_for_slot()
        if self.wake_at == self.next_deadline:
            return one_of([self._waits_for_slot(), timed(gettext("its deadline"), self.wake_at)])
        if self.failed_evaluations:
            evaluation = timed(gettext("its evaluation %d") % (self.failed_evaluations + 1), self.wake_at)
            return f"{evaluation}: {self.error_summary}"
        if self.is_retried:
            return attempt_text(self.attempt + 1, self.wake_at, self.deferrals, self.error)
        if self.planned and self.started_at is None and self.ending is None:
            what = gettext("its date")
        elif self.status == WorkflowStatus.WAITING and self.has_no_context and self.ending is None:
            what = gettext("the end of its window")
        else:
            what = gettext("its timer")
        return timed(what, self.wake_at)

    def suspended_reason(self, child: str | None = None) -> str:
        """Return what a suspended run waits for: all its waits, and its deadline. ``child``: how to call a child run,
        which is read otherwise."""
        by = [] if self.next_deadline is None else [timed(gettext("its deadline"), self.next_deadline)]
        return one_of([self._waits_for_branches(child), *by])

    def _waits_for_slot(self) -> str:
        return str(self.__dict__.get("slot_reason", "")) or slot_reason(KIND, self.pk)

    def _waits_for_branches(self, child: str | None) -> str:
        """Return all waits of a suspended run, and until when it waits for them."""
        waits = [wait for wait in sorted(self.waits.all(), key=lambda each: each.pk) if wait.visit == self.visit]
        found = [wait.describe(child) for wait in waits if not wait.is_whole]
        until = next((wait.deadline for wait in waits if wait.is_whole), None)
        if self.wake_reason == WakeReason.ALL:
            what = all_of(found) if all(found) else gettext("its timeout") if until else ""
        else:
            what = one_of(found)
        return until_text(what, until)

    @property
    def next_deadline(self) -> datetime | None:
        """Its deadline; None once it has failed or was cancelled, because its path has none."""
        return self.deadline if self.ending is None else None

    @property
    def cancelling_events(self) -> list[str]:
        """The events that cancel the run, in words, as far as it has registered them."""
        return [wait.description for wait in self.waits.all() if wait.visit == WHOLE_RUN]

    def is_late(self, now: datetime) -> bool:
        """Return whether its deadline has passed."""
        return self.next_deadline is not None and self.next_deadline <= now

    def by_deadline(self, moment: datetime) -> datetime:
        """Return ``moment``, or the deadline of the run if that is earlier: when the released run is due."""
        return moment if self.next_deadline is None else min(moment, self.next_deadline)

    def record_loss(self, clock: Clock) -> None:
        """Record the lost attempt in the history, once for each loss."""
        attempts = self.steps.filter(step=self.current_step, visit=self.visit, attempt=self.attempt + 1)
        if self.deferrals:  # earlier attempts have the same number
            attempts = attempts.filter(pk__gt=attempts.filter(outcome=DEFERRED).order_by("-pk").values("pk")[:1])
        if attempts.filter(outcome=LOST).count() < self.losses:
            self.steps.create(
                step=self.current_step,
                visit=self.visit,
                attempt=self.attempt + 1,
                started=None,
                finished=clock(),
                outcome=LOST,
                error="The worker died or hung: its lease ran out.",
                wake_reason=self.wake_reason,
                wake_ref=self.wake_ref,
            )

    @property
    def is_retried(self) -> bool:
        """Whether it is due for another attempt, or another evaluation of whether it starts."""
        return bool(self.attempt or self.deferrals or self.failed_evaluations)

    @property
    def awaits_start(self) -> bool:
        """Whether an event has made it and its first step has not committed yet."""
        return self.event_id is not None and self.started_at is None

    def find_definition(self) -> WorkflowDefinition:
        return workflow_of(self)

    @property
    def has_no_context(self) -> bool:
        """Whether its Context has still to be made from the event that starts it. One with limits may have it before it
        starts."""
        return self.awaits_start and not self.data

    @property
    def resumed_status(self) -> WorkflowStatus:
        """The status with which a parked run resumes."""
        if self.waits.filter(visit=self.visit).exists():
            return WorkflowStatus.SUSPENDED
        if self.planned and self.started_at is None and self.ending is None:
            return WorkflowStatus.WAITING  # still planned: it moves with its date
        return WorkflowStatus.RUNNING

    @noted("Resumed")
    def resume(self, now: datetime | None = None, *, step: str | None = None, again: bool = False) -> None:
        """Resume a parked run at its current step, or retry the last step of a failed one, with all its attempts. A run
        whose path has failed, or was ended at once, continues the path.

        ``step``: continue at this step instead, as after a ``goto``, and wait for nothing else. A failed run leaves the
        path of its ``@on_fail`` then. A run that was cancelled can only continue the path of its ``@on_cancel``.
        ``again``: also at a step that has started a child run which completed or is unfinished, and may start another.

        Raises ``NotResumableError`` for a run in another status, for a step of a run that was cancelled, and for a step
        that may start another child without ``again``; and ``UnknownRunError`` for a run that was removed; with
        ``step`` also ``UnknownWorkflowError`` and ``UnknownStepError``.
        """
        moment = aware(now or timezone.now(), "now")
        self._read_again()  # a path may have moved it since
        if step is not None and self.is_finished and self.path == "@on_cancel":
            raise NotResumableError(
                f"{self} was cancelled, and only the path of its @on_cancel can be resumed; do so without a step."
            )
        changes: dict[str, Any] = {"status": self.resumed_status}
        newer, rejoined = self._repaired_children()
        if step is not None:
            if newer or rejoined:
                raise NotResumableError(
                    f"{self} has not received the final end of its child yet; another step could start a second child. "
                    f"Resume it without a step, on its page in the admin or by manage.py automation_resume workflow "
                    f"--failed --pk {self.pk}."
                )
            changes = {"status": WorkflowStatus.RUNNING, **self._entry_at(step)}
            if self.status != WorkflowStatus.PARKED:
                changes["ending"] = None  # it has ended, and leaves its path
            if not again and (child := self._child_started_by(step)) is not None:
                raise NotResumableError(
                    f"{self}: step {step!r} has started {child}, which is {child.status}; run again, it may start a "
                    "second one. Resume the run at a later step, without a step, or with again=True (--again)."
                )
        elif newer or rejoined:
            changes |= self._repair(newer, rejoined)
        if self.deadline is not None and self.deadline <= moment:
            changes["deadline"] = self.renewed_deadline(moment)
        stopped = models.Q(status__in=[WorkflowStatus.PARKED, WorkflowStatus.FAILED])
        if step is None:
            stopped |= models.Q(status=WorkflowStatus.CANCELLED, ending__isnull=False)  # its path was ended at once
        with transaction.atomic(using=alias_of(WorkflowRun)):
            changed = revoke(
                WorkflowRun.objects.filter(stopped, pk=self.pk),
                **changes,
                attempt=0,
                deferrals=0,
                failed_evaluations=0,
                error="",
                finished_at=None,
                parked_at=None,
                wake_at=moment,
            )
            for end in newer if changed and step is None else ():
                inbox = self.inbox.filter(name=end.name, pk__lte=end.pk, consumed_at=None)
                revoke(inbox, consumed_at=moment, delivered_at=moment, wake_at=None)
            if changed and step is None and rejoined:
                self._wait_for_children(rejoined)
        if not changed:
            self._read_again()
            raise NotResumableError(f"{self} is {self.status}; only a parked or failed run can be resumed.")
        if step is not None:
            self.waits.of_visits().delete()
        ring_after_commit(alias_of(WorkflowRun), lane_of(self))
        self.refresh_from_db()

    def _repaired_children(self) -> tuple[list[Signal], list[str]]:
        """Return what became of the children whose ends have woken the run at its current step, if they were resumed
        since: the later ends, and the channels of those that have not ended yet."""
        ends: dict[str, int] = {}
        if self.wake_reason == WakeReason.SIGNAL:
            ends = dict(self.inbox.filter(pk=self.wake_ref or 0).values_list("name", "pk"))
        elif self.wake_reason == WakeReason.ALL and isinstance(self.branches, list):
            ends = {each["channel"]: each["ref"] for each in self.branches if each["reason"] == WakeReason.SIGNAL}
        newer, rejoined = [], []
        for channel, ref in ends.items():
            if not channel.startswith(f"{SUBFLOW}:"):
                continue
            later = self.inbox.filter(name=channel, consumed_at=None, pk__gt=ref).last()
            if later is not None:
                newer.append(later)
            elif WorkflowRun.objects.unfinished().filter(parent=self.pk, parent_channel=channel).exists():
                rejoined.append(channel)
        return newer, rejoined

    def renewed_deadline(self, now: datetime) -> datetime | None:
        """Return the deadline of a run that is resumed after its deadline: the same duration, counted from ``now``.
        None if this code no longer declares one."""
        try:
            return workflow_of(self).deadline_from(now)
        except UnknownWorkflowError:
            return None

    def _repair(self, newer: list[Signal], rejoined: list[str]) -> dict[str, Any]:
        """Return the changes of a run that receives the later ends of its children, or waits for them again."""
        changes: dict[str, Any] = {"status": WorkflowStatus.SUSPENDED} if rejoined else {}
        row = WorkflowRun.objects.only("wake_reason", "branches").get(pk=self.pk)
        if row.wake_reason == WakeReason.ALL:
            later = {end.name: {"ref": end.pk, "payload": end.payload} for end in newer}
            kept = [each for each in row.branches or () if each.get("channel") not in rejoined]
            changes["branches"] = [{**each, **later.get(each.get("channel", ""), {})} for each in kept]
        elif newer:
            changes["wake_ref"] = newer[0].pk
        return changes

    def _wait_for_children(self, channels: list[str]) -> None:
        """Register a wait for the next end of each child, at the step that their last ends have woken."""
        row = WorkflowRun.objects.only("visit", "current_step").get(pk=self.pk)
        for channel in channels:
            self.waits.create(
                visit=row.visit,
                branch=branch_of(channel),
                channel=channel,
                key=channel_key(channel),
                then=row.current_step,
                on_timeout=row.current_step,
            )

    def _child_started_by(self, step: str) -> WorkflowRun | None:
        """Return a child that ``step`` has started and that has completed or is unfinished, or None."""
        started = models.Q(pk__in=())
        for visit, outcome in self.steps.filter(step=step, outcome__in=STARTING).values_list("visit", "outcome"):
            channel = subflow_channel(self.pk, visit)
            one = outcome == "subflow"
            started |= models.Q(parent_channel=channel) if one else models.Q(parent_channel__startswith=f"{channel}:")
        children = WorkflowRun.objects.filter(started, parent=self.pk)
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
            "branches": None,
        }
