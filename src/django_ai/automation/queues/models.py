"""The tables of the engine: ``Worker``, ``Arrival``, ``Maintenance``, ``Pause``, ``HeldRow``, ``Action``,
``BulkAction``, ``MutedProblem``, ``Limiter`` and ``Slot``.

``Worker`` shows which processes work, to operators and ``automation_health``; no guarantee depends on it. ``Arrival``
numbers everything that arrives for waiting runs and agents (``positions``). ``Maintenance`` has a row for each periodic
task. ``Pause`` is what an operator or code has paused, and ``HeldRow`` a row that waits for the end of a pause
(``pauses``). ``Action`` is what somebody has done to a row (``history``), ``BulkAction`` what workers do to many rows
for somebody (``queues/bulk``), and ``MutedProblem`` an error that shall not alert (``problems``). ``Limiter`` and
``Slot`` are those of ``queues/limits``. ``wakeable`` has the abstract base of all rows that become due.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..db.indexes import unique
from ..db.writer import AutomationModel
from ..values.digests import KEY_LENGTH
from ..values.languages import in_english
from .wakeable import Wakeable, parked_index, timed, wake_index


class Worker(AutomationModel):
    """A process that performs due rows (``worker_status``). Its times are those of the database's clock.

    ``kinds``: the kinds of rows that it performs, separated by commas; empty: all. ``queues``: of which queues, in the
    same form; a queue after ``!`` is excluded. ``worked``: for each kind and queue (``Lane.name``), how many seconds
    before ``seen_at`` the process last performed a row of it. ``stopped_at``: when it signed off.
    """

    name = models.CharField(_("name"), max_length=100, editable=False)
    runtime = models.CharField(_("runtime"), max_length=50, editable=False)
    host = models.CharField(_("host"), max_length=60, editable=False)
    pid = models.PositiveBigIntegerField(_("pid"), editable=False)
    kinds = models.CharField(_("kinds"), max_length=500, blank=True, default="", editable=False)
    queues = models.TextField(_("queues"), blank=True, default="", editable=False)
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
    """A periodic task of the engine (``maintenance``), or a command that an operator may start again, which has no
    ``wake_at``, so that no worker performs it. ``position``: where its next time slice continues; null: at the
    beginning. ``done``: how many rows it has removed or corrected. ``failures``: how often in a row it has raised;
    ``error``: what it raised last."""

    name = models.CharField(_("name"), max_length=100, editable=False)
    position = models.JSONField(_("position"), null=True, blank=True, editable=False)
    completed_at = models.DateTimeField(_("completed at"), null=True, blank=True, editable=False)
    done = models.BigIntegerField(_("done"), default=0, editable=False)
    failures = models.PositiveSmallIntegerField(_("failures"), default=0, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)

    drain_order: ClassVar[int] = 90
    kind: ClassVar[str] = "maintenance"

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
        return "" if self.wake_at is None else timed(gettext("its next time slice"), self.wake_at)


class Pause(AutomationModel):
    """What is paused. ``target``: "everything", "queue:NAME", "workflow:NAME", "agent:NAME", "callback:NAME", or one
    row as "workflows#12"; then ``row_kind`` and ``row_pk`` name it, too."""

    target = models.CharField(_("target"), max_length=300)
    row_kind = models.CharField(_("row kind"), max_length=20, blank=True, default="", editable=False)
    row_pk = models.BigIntegerField(_("row key"), null=True, blank=True, editable=False)
    reason = models.TextField(_("reason"), blank=True, default="")
    paused_at = models.DateTimeField(_("paused at"), editable=False)

    class Meta:
        verbose_name = _("pause")
        verbose_name_plural = _("pauses")
        permissions = [("end_pause", "Can end pauses")]
        constraints = [unique("automation_pause_target", "target")]
        indexes = [models.Index(fields=["row_pk"], name="automation_pause_row")]

    def __str__(self) -> str:
        return f"pause of {self.target}"


class HeldRow(AutomationModel):
    """A row that became due while it was paused, and that the end of the pause makes due again. ``due_at``: since when
    it has been due."""

    kind = models.CharField(_("kind"), max_length=20, editable=False)
    row_pk = models.BigIntegerField(_("row key"), editable=False)
    target = models.CharField(_("target"), max_length=300, editable=False)
    due_at = models.DateTimeField(_("due at"), editable=False)

    class Meta:
        verbose_name = _("held row")
        verbose_name_plural = _("held rows")
        indexes = [
            models.Index(fields=["row_pk", "kind"], name="automation_held_row"),
            models.Index(fields=["target"], name="automation_held_target"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.row_pk}, held for the pause of {self.target}"


class Action(AutomationModel):
    """What somebody has done to a row (``history``).

    ``model`` and ``key``: which row, as "automation_workflows.workflowrun" and its primary key; of a pause, its target.
    ``what``: the row in words. ``done``: the past participle, such as "Resumed". ``actor``: "user:5", or as given to
    ``acting_as``. ``actor_name``: the name that the actor had.
    """

    model = models.CharField(_("model"), max_length=100, editable=False)
    key = models.CharField(_("key"), max_length=300, editable=False)
    what = models.CharField(_("row"), max_length=200, blank=True, default="", editable=False)
    done = models.CharField(_("action"), max_length=20, editable=False)
    actor = models.CharField(_("actor"), max_length=200, editable=False)
    actor_name = models.CharField(_("who"), max_length=200, blank=True, default="", editable=False)
    reason = models.TextField(_("reason"), blank=True, default="", editable=False)
    done_at = models.DateTimeField(_("at"), editable=False)

    class Meta:
        verbose_name = _("action")
        verbose_name_plural = _("actions")
        indexes = [
            models.Index(fields=["key", "model"], name="automation_action_row"),
            models.Index(fields=["actor"], name="automation_action_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.what}: {self.done.lower()} by {self.actor_name}"


class BulkStatus(models.TextChoices):
    PENDING = "pending", _("Pending")
    RUNNING = "running", _("Running")
    COMPLETED = "completed", _("Completed")
    CANCELLED = "cancelled", _("Cancelled")
    PARKED = "parked", _("Parked")


class BulkAction(Wakeable):
    """An action over many rows, which workers carry out (``queues/bulk``).

    ``verb`` and ``row_kind``: what is done to which kind of row, such as "cancel" and "workflow". ``filter``: which
    rows (``bulk.filters``). ``reason``, ``actor``, ``actor_name``: why, and who acts, as in ``Action``. ``total``: how
    many rows matched when it was created; greater than ``MAX_COUNTED_ROWS``: more than that. ``position``: the primary
    key up to which all rows are done; ``last_pk``: the greatest one that it concerns. ``done``, ``refused``,
    ``failed``: how many rows have changed, could not in their state, and raised an error. ``awaiting_code``: how many
    of those that were resumed had been parked because their code was missing. ``examples``: some of the rows that were
    refused or failed, and why.
    """

    verb = models.CharField(_("verb"), max_length=50, editable=False)
    row_kind = models.CharField(_("row kind"), max_length=20, editable=False)
    filter = models.JSONField(_("filter"), default=dict, editable=False)
    reason = models.TextField(_("reason"), blank=True, default="", editable=False)
    actor = models.CharField(_("actor"), max_length=200, blank=True, default="", editable=False)
    actor_name = models.CharField(_("who"), max_length=200, blank=True, default="", editable=False)
    status = models.CharField(
        _("status"), max_length=10, choices=BulkStatus, default=BulkStatus.PENDING, editable=False
    )
    total = models.PositiveIntegerField(_("total"), default=0, editable=False)
    position = models.BigIntegerField(_("position"), null=True, blank=True, editable=False)
    last_pk = models.BigIntegerField(_("last key"), null=True, blank=True, editable=False)
    done = models.PositiveIntegerField(_("done"), default=0, editable=False)
    refused = models.PositiveIntegerField(_("refused"), default=0, editable=False)
    failed = models.PositiveIntegerField(_("failed"), default=0, editable=False)
    awaiting_code = models.PositiveIntegerField(_("awaiting code"), default=0, editable=False)
    examples = models.JSONField(_("examples"), default=list, blank=True, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True, editable=False)

    drain_order: ClassVar[int] = 80
    kind: ClassVar[str] = "bulk"
    accompanies: ClassVar[Collection[str]] = ("workflows", "agents", "callbacks", "events")

    class Meta:
        verbose_name = _("bulk action")
        verbose_name_plural = _("bulk actions")
        permissions = [
            ("resume_bulkaction", "Can resume bulk actions"),
            ("cancel_bulkaction", "Can cancel bulk actions"),
        ]
        indexes = [
            wake_index("automation_bulk"),
            parked_index("automation_bulk"),
            models.Index(fields=["finished_at"], name="automation_bulk_finished"),
        ]

    def __str__(self) -> str:
        return f"bulk action #{self.pk}: {self.verb} {self.row_kind}"

    @classmethod
    def unfinished(cls) -> models.QuerySet[Any]:
        return cls.objects.exclude(status__in=[BulkStatus.COMPLETED, BulkStatus.CANCELLED])

    @property
    def is_finished(self) -> bool:
        return self.status in (BulkStatus.COMPLETED, BulkStatus.CANCELLED)

    @property
    def performed(self) -> int:
        """How many rows it has looked at and acted on."""
        return self.done + self.refused + self.failed

    @property
    def remaining(self) -> int:
        """How many rows are left, of those that were counted when it was created."""
        return 0 if self.status == BulkStatus.COMPLETED else max(self.total - self.performed, 0)

    def waiting_reason(self, now: datetime) -> str:
        if self.status == BulkStatus.PARKED:
            return self.parked_reason()
        return "" if self.wake_at is None else timed(gettext("its next rows"), self.wake_at)

    def resume(self, now: datetime | None = None) -> None:
        """Let a parked bulk action continue where it stopped. Raises ``NotResumableError`` for one that is not
        parked."""
        self.behaviour.resume(self, now or timezone.now())


class MutedProblem(AutomationModel):
    """An error that does not alert, and that the page of problems folds (``problems``).

    ``key``: what all rows with this problem share. ``kind``, ``name``, ``state`` and ``error``: of the row with which
    it was muted. ``until``: when the mute ends; null: never.
    """

    key = models.CharField(_("key"), max_length=KEY_LENGTH, editable=False)
    kind = models.CharField(_("kind"), max_length=50, editable=False)
    name = models.CharField(_("name"), max_length=800, blank=True, default="", editable=False)
    state = models.CharField(_("state"), max_length=10, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    reason = models.TextField(_("reason"), blank=True, default="", editable=False)
    actor = models.CharField(_("actor"), max_length=200, blank=True, default="", editable=False)
    actor_name = models.CharField(_("who"), max_length=200, blank=True, default="", editable=False)
    muted_at = models.DateTimeField(_("muted at"), default=timezone.now, editable=False)
    until = models.DateTimeField(_("until"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("muted problem")
        verbose_name_plural = _("problems")
        default_permissions = ("add", "delete", "view")
        constraints = [unique("automation_muted_problem", "key")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.state}: {self.error}"


class Limiter(AutomationModel):
    """A limit of one definition, for one value of its key. Its row is the lock under which rows are admitted.

    ``row_kind`` and ``name``: the kind of rows, and the workflow, callback or handler. ``limit``: the limit within it
    (``DeclaredLimit.name``). ``value``: the value of its key, for display. ``next_at``: of a throttle, see
    ``values.limits.next_start``.
    """

    row_kind = models.CharField(_("row kind"), max_length=20, editable=False)
    name = models.CharField(_("name"), max_length=800, editable=False)
    limit = models.CharField(_("limit"), max_length=200, editable=False)
    value = models.CharField(_("value"), max_length=200, blank=True, default="", editable=False)
    key = models.CharField(_("key"), max_length=KEY_LENGTH, editable=False)
    next_at = models.DateTimeField(_("next at"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)

    class Meta:
        verbose_name = _("limit")
        verbose_name_plural = _("limits")
        constraints = [unique("automation_limiter_key", "key")]
        permissions = [("view_data_limiter", "Can view keys of limits")]

    @in_english
    def __str__(self) -> str:
        return self.in_words()

    def in_words(self) -> str:
        """Return what limits which rows, in the active language."""
        given = {
            "limit": repr(self.limit.partition(" ")[0]),
            "kind": self.row_kind,
            "name": self.name,
            "value": repr(self.value),
        }
        if not self.value:
            return gettext("the limit %(limit)s of %(kind)s %(name)s") % given
        return gettext("the limit %(limit)s of %(kind)s %(name)s for %(value)s") % given


class SlotState(models.TextChoices):
    QUEUED = "queued", "Queued"  # its row waits for its turn
    HELD = "held", "Held"
    RELEASED = "released", "Released"  # counts as held until its ``wake_at``
    TIMER = "timer", "Timer"  # of no row: when the limiter looks at its queue again


class SlotTerm(models.TextChoices):
    """How long a row holds a slot."""

    EXECUTION = "execution", "Execution"  # until it waits, sleeps, backs off or ends
    START = "start", "Start"  # until it has started
    LIFE = "life", "Life"  # until it ends
    PERIOD = "period", "Period"  # for the period of a rate limit, whatever becomes of the row


class Slot(Wakeable):
    """A row that waits for, or holds, a part of what a ``Limiter`` allows (``queues/limits``).

    It is due when its limiter has to admit rows: because it was released, or as a timer. The order of primary keys is
    the order of the queue. ``expires_at``: when the period of a rate limit is over.
    """

    # Without a constraint: MariaDB would lock the limiter in each transaction that changes the state, which is in the
    # same index as this key. Limiters are deleted only under their lock, and when nothing refers to them.
    limiter = models.ForeignKey(
        Limiter, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False, editable=False
    )
    row_kind = models.CharField(max_length=20, editable=False)
    row_pk = models.BigIntegerField(null=True, blank=True, editable=False)
    state = models.CharField(max_length=10, choices=SlotState, default=SlotState.QUEUED, editable=False)
    term = models.CharField(max_length=10, choices=SlotTerm, default=SlotTerm.EXECUTION, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, editable=False)
    unique_key = models.CharField(max_length=KEY_LENGTH, null=True, blank=True, editable=False)

    drain_order: ClassVar[int] = 25
    kind: ClassVar[str] = "limits"
    accompanies: ClassVar[Collection[str]] = ("workflows", "agents", "callbacks")
    claim_batches: ClassVar[int] = 10

    class Meta:
        verbose_name = _("slot of a limit")
        verbose_name_plural = _("slots of limits")
        constraints = [unique("automation_slot_unique", "unique_key")]
        indexes = [
            wake_index("automation_slot"),
            models.Index(fields=["limiter", "state", "id"], name="automation_slot_queue"),
            models.Index(fields=["row_pk", "row_kind"], name="automation_slot_row"),
        ]

    def __str__(self) -> str:
        return f"slot #{self.pk} of limit #{self.limiter_id}"

    @classmethod
    def unfinished(cls) -> models.QuerySet[Any]:
        """Return those that are due at a time. The others are what their rows wait for."""
        return cls.objects.filter(wake_at__isnull=False)

    @property
    def is_finished(self) -> bool:
        return False

    def waiting_reason(self, now: datetime) -> str:
        return "" if self.wake_at is None else timed(gettext("the next look at the queue of its limit"), self.wake_at)
