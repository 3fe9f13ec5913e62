"""The tables of agents: ``AgentRun`` (one agent), ``HandlerExecution`` (one event for one of its handlers: its mailbox
and its history), and ``AgentRoute`` (a key under which events find the agent).

The agent is the ``Wakeable``; an execution in its mailbox is not. ``wake_at`` is the earliest ``due_at`` of the pending
executions. So the handlers of one agent never overlap, and a retry that waits for its backoff delays no other
execution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import ClassVar

from django.db import models, transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.utils import timezone
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..db.indexes import PartialIndex, unique
from ..db.writer import AutomationModel, WriterQuerySet, alias_of
from ..events.models import Event
from ..exceptions import NotResumableError
from ..queues.history import noted
from ..queues.lanes import lane_indexes, lane_of
from ..queues.lease import revoke
from ..queues.limits.reasons import slot_reason, slot_reasons
from ..queues.limits.release import give_back
from ..queues.notifier import ring_after_commit
from ..queues.run import Run
from ..queues.tracing import trace_context_field
from ..queues.wakeable import deferral_text, ended_index, entity_index, failed_index, parked_index, timed
from ..state.encryption import EncryptedJSONField
from ..values.clock import Clock, aware
from ..values.digests import KEY_LENGTH, new_call_key
from ..values.languages import in_english
from ..values.text import last_line
from .definitions import AgentDefinition, agent_of


class AgentStatus(models.TextChoices):
    PENDING = "pending", _("Pending")  # not activated yet: it has no Context
    ACTIVE = "active", _("Active")  # it handles events, or waits for them
    COMPLETED = "completed", _("Completed")
    FAILED = "failed", _("Failed")  # it could not be spawned
    CANCELLED = "cancelled", _("Cancelled")
    PARKED = "parked", _("Parked")  # for an operator or for code: ``error`` says why


HANDLER = "handler"
"""The kind of handler executions, for limits."""
FINISHED = (AgentStatus.COMPLETED, AgentStatus.FAILED, AgentStatus.CANCELLED)


class AgentRunQuerySet(WriterQuerySet["AgentRun"]):
    def active(self) -> AgentRunQuerySet:
        return self.filter(status=AgentStatus.ACTIVE)

    def unfinished(self) -> AgentRunQuerySet:
        return self.exclude(status__in=FINISHED)

    def with_failed_handlers(self) -> AgentRunQuerySet:
        """Annotate each agent with the number of its failed handler executions (``failed_handlers``)."""
        failed = HandlerExecution.objects.filter(run=models.OuterRef("pk"), status=HandlerStatus.FAILED)
        count = failed.order_by().values("run").annotate(count=models.Count("pk")).values("count")
        return self.annotate(failed_handlers=models.Subquery(count))


class AgentRun(Run):
    """One agent."""

    name = models.CharField(_("name"), max_length=200, editable=False)
    version = models.CharField(_("version"), max_length=50, default="1", editable=False)
    status = models.CharField(
        _("status"), max_length=10, choices=AgentStatus, default=AgentStatus.PENDING, editable=False
    )
    data = EncryptedJSONField(_("data"), default=dict, blank=True, editable=False)
    call_key = models.CharField(_("call key"), max_length=KEY_LENGTH, default=new_call_key, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
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
        related_name="agent_runs",
        editable=False,
    )
    position = models.BigIntegerField(_("position"), default=0, editable=False)
    entity_type = models.CharField(_("entity type"), max_length=200, blank=True, default="", editable=False)
    entity_id = models.CharField(_("entity id"), max_length=255, blank=True, default="", editable=False)
    origin_key = models.CharField(_("origin key"), max_length=KEY_LENGTH, null=True, blank=True, editable=False)
    singleton = models.CharField(_("singleton"), max_length=KEY_LENGTH, blank=True, default="", editable=False)
    routing = models.CharField(_("routing"), max_length=KEY_LENGTH, blank=True, default="", editable=False)
    holds_claims = models.BooleanField(_("holds claims"), default=False, editable=False)
    caused_by = models.CharField(_("caused by"), max_length=200, blank=True, default="", editable=False)
    trace_context = trace_context_field()
    depth = models.PositiveSmallIntegerField(_("depth"), default=0, editable=False)

    objects = AgentRunQuerySet.as_manager()  # type: ignore[misc, assignment]

    drain_order: ClassVar[int] = 35
    kind: ClassVar[str] = "agents"
    pause_scope: ClassVar[str] = "agent"
    performable: ClassVar[tuple[str, ...]] = (AgentStatus.PENDING, AgentStatus.ACTIVE)

    class Meta:
        verbose_name = _("agent run")
        verbose_name_plural = _("agent runs")
        constraints = [unique("automation_agent_origin", "origin_key")]
        permissions = [
            ("resume_agentrun", "Can resume agent runs"),
            ("complete_agentrun", "Can complete agent runs"),
            ("cancel_agentrun", "Can cancel agent runs"),
            ("pause_agentrun", "Can pause agent runs"),
            ("edit_agentrun", "Can edit Contexts of agent runs"),
            ("view_data_agentrun", "Can view Contexts of agent runs"),
        ]
        indexes = [
            *lane_indexes("automation_agent"),
            parked_index("automation_agent"),
            failed_index("automation_agent"),
            entity_index("automation_agent"),
            models.Index(fields=["name", "status", "routing"], name="automation_agent_name"),
        ]

    def __str__(self) -> str:
        return f"{self.name} #{self.pk}"

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @classmethod
    def unfinished(cls) -> AgentRunQuerySet:
        return cls.objects.unfinished().with_failed_handlers()

    @classmethod
    def give_back(cls, pks: Sequence[int], now: datetime) -> None:
        pending = HandlerExecution.objects.filter(run__in=pks, status=HandlerStatus.PENDING)
        give_back(HANDLER, list(pending.values_list("pk", flat=True)), now)

    def waiting_text(self, now: datetime | None = None) -> str:
        what = super().waiting_text(now)
        failed = 0 if self.status == AgentStatus.PENDING else self.count_failed_handlers()
        if not what or not failed:
            return what
        return ngettext(
            "%(what)s (%(number)d handler execution has failed)",
            "%(what)s (%(number)d handler executions have failed)",
            failed,
        ) % {"what": what, "number": failed}

    def count_failed_handlers(self) -> int:
        """Return the number of its failed handler executions, which ``with_failed_handlers`` reads with the row."""
        if "failed_handlers" not in self.__dict__:
            return self.executions.filter(status=HandlerStatus.FAILED).count()
        return self.__dict__["failed_handlers"] or 0

    def waiting_reason(self, now: datetime) -> str:
        if self.status == AgentStatus.PARKED:
            return self.parked_reason()
        if self.wake_at is not None:
            is_active = self.status == AgentStatus.ACTIVE
            what = gettext("what is due in its mailbox") if is_active else gettext("its next activation attempt")
            return timed(what, self.wake_at)
        return gettext("its events") if self.status == AgentStatus.ACTIVE and self.started_at else ""

    def park(self, reason: str, clock: Clock = timezone.now, *, awaiting_deploy: bool = False) -> None:
        first = self.executions.filter(status=HandlerStatus.PENDING).order_by("due_at", "pk").first()
        if first is not None:
            reason = f"{reason}\nFirst in its mailbox: {first}."
        super().park(reason, clock, awaiting_deploy=awaiting_deploy)

    @property
    def has_no_context(self) -> bool:
        """Whether its Context has still to be made from the event that spawns it."""
        return not self.routing and not self.data

    def find_definition(self) -> AgentDefinition:
        return agent_of(self)

    @property
    def resumed_status(self) -> AgentStatus:
        """The status with which a parked agent resumes."""
        return AgentStatus.ACTIVE if self.routing else AgentStatus.PENDING

    @noted("Resumed")
    def resume(self, now: datetime | None = None) -> None:
        """Resume a parked agent with its mailbox, or retry the activation of one that failed.

        Raises ``NotResumableError`` for an agent in another status.
        """
        rows = AgentRun.objects.filter(pk=self.pk, status__in=[AgentStatus.PARKED, AgentStatus.FAILED])
        changes = {"status": self.resumed_status, "attempt": 0, "error": "", "finished_at": None, "parked_at": None}
        if not revoke(rows, **changes, wake_at=aware(now or timezone.now(), "now")):
            raise NotResumableError(f"{self} is {self.status}; only a parked or failed agent can be resumed.")
        ring_after_commit(alias_of(AgentRun), lane_of(self))
        self.refresh_from_db()


class AgentRoute(AutomationModel):
    """A key of the events that an agent receives. The one with a ``unique_key`` makes a singleton unique."""

    run = models.ForeignKey(AgentRun, on_delete=models.CASCADE, related_name="routes", editable=False)
    key = models.CharField(max_length=KEY_LENGTH, editable=False)
    unique_key = models.CharField(max_length=KEY_LENGTH, null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("agent route")
        verbose_name_plural = _("agent routes")
        constraints = [unique("automation_route_unique", "unique_key")]
        indexes = [models.Index(fields=["key", "run"], name="automation_route_key")]

    def __str__(self) -> str:
        return f"route to agent run #{self.run_id}"


class HandlerStatus(models.TextChoices):
    PENDING = "pending", _("Pending")
    WAITING = "waiting", _("Waiting")  # for a slot of a limit
    COMPLETED = "completed", _("Completed")
    SKIPPED = "skipped", _("Skipped")  # its condition was false, or another run had claimed the event
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")
    PARKED = "parked", _("Parked")


class HandlerExecution(AutomationModel):
    """One event for one handler of an agent: due, retried, and finished exactly once."""

    run = models.ForeignKey(
        AgentRun,
        verbose_name=_("run"),
        on_delete=models.CASCADE,
        related_name="executions",
        db_index=False,  # automation_handler_run begins with it
        editable=False,
    )
    event = models.ForeignKey(
        Event, verbose_name=_("event"), on_delete=models.CASCADE, related_name="handler_executions", editable=False
    )
    handler = models.CharField(_("handler"), max_length=200, editable=False)
    milestone = models.CharField(_("milestone"), max_length=250, blank=True, default="", editable=False)
    status = models.CharField(
        _("status"), max_length=10, choices=HandlerStatus, default=HandlerStatus.PENDING, editable=False
    )
    attempt = models.PositiveSmallIntegerField(_("attempt"), default=0, editable=False)
    deferrals = models.PositiveIntegerField(_("deferrals"), default=0, editable=False)
    call_key = models.CharField(_("call key"), max_length=KEY_LENGTH, default=new_call_key, editable=False)
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    due_at = models.DateTimeField(_("due at"), editable=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True, editable=False)
    parked_at = models.DateTimeField(_("parked at"), null=True, blank=True, editable=False)
    unique_key = models.CharField(_("unique key"), max_length=KEY_LENGTH, editable=False)

    position: int = 0
    """Position of its handler in the class: executions that are due at the same time run in this order. Not stored."""

    class Meta:
        verbose_name = _("handler execution")
        verbose_name_plural = _("handler executions")
        constraints = [unique("automation_handler_unique", "unique_key")]
        permissions = [
            ("resume_handlerexecution", "Can resume handler executions"),
        ]
        ordering = ["pk"]
        indexes = [
            # With the key, for the newest executions of an agent: PostgreSQL would read those of all agents backwards.
            models.Index(fields=["run", "id"], name="automation_handler_run"),
            # Begins with the run, also for maintenance, which reads the pending executions of all agents: PostgreSQL
            # would prefer an index on due_at whenever its statistics are from a time with no pending executions.
            PartialIndex(
                fields=["run", "status", "due_at"],
                name="automation_handler_mailbox",
                condition=models.Q(status="pending"),
            ),
            PartialIndex(
                fields=["run", "status"], name="automation_handler_failed", condition=models.Q(status="failed")
            ),
            parked_index("automation_handler"),
            failed_index("automation_handler"),
            ended_index("automation_handler", "due_at", "started_at"),
        ]

    def __str__(self) -> str:
        at = f" at {self.milestone}" if self.milestone else ""
        return f"{self.handler} for event {self.event_id}{at}"

    @property
    def idempotency_key(self) -> str:
        return f"handler:{self.call_key}"

    @property
    def error_summary(self) -> str:
        """The line of its ``error`` that names the cause, safe to print. Empty: it has none."""
        return last_line(self.error)

    @classmethod
    def unfinished(cls) -> models.QuerySet[HandlerExecution]:
        statuses = [HandlerStatus.PENDING, HandlerStatus.WAITING, HandlerStatus.PARKED]
        return cls.objects.filter(status__in=statuses).select_related("run")

    @classmethod
    def load_reasons(cls, rows: Sequence[HandlerExecution]) -> None:
        waiting = {row.pk: row for row in rows if row.status == HandlerStatus.WAITING}
        for pk, reason in slot_reasons(HANDLER, list(waiting)).items() if waiting else ():
            waiting[pk].__dict__["slot_reason"] = reason

    @in_english
    def waits_for(self, now: datetime | None = None) -> str:
        """Return the one thing that this unfinished execution waits for, in English. Empty: it waits for nothing, and
        is stuck."""
        return self.waiting_text(now)

    def waiting_text(self, now: datetime | None = None) -> str:
        """Return ``waits_for`` in the active language."""
        now = now or timezone.now()
        if self.status == HandlerStatus.PARKED:
            if self.parked_at is None:
                return gettext("an operator, to resume it: %s") % self.error_summary
            return gettext("missing code, or an operator, to resume it: %s") % self.error_summary
        if self.status == HandlerStatus.WAITING:
            return str(self.__dict__.get("slot_reason") or slot_reason(HANDLER, self.pk))
        if self.run.status == AgentStatus.PARKED or self.run.lease is not None:
            return gettext("its agent %s") % self.run
        if self.run.wake_at is not None and self.run.wake_at <= max(now, self.due_at):
            why = f", {deferral_text(self.deferrals, self.error)}" if self.deferrals else ""
            return timed(gettext("its agent %s") % self.run, max(self.run.wake_at, self.due_at)) + why
        end = self.run.end_of_pause if self.run.wake_at is None else ""
        if end:
            return gettext("its agent %(agent)s, which waits for %(what)s") % {"agent": self.run, "what": end}
        return gettext("the next reconciliation: its agent %s is not due for it") % self.run

    @noted("Resumed")
    def resume(self, now: datetime | None = None) -> None:
        """Retry a failed or parked execution, with all its attempts.

        Raises ``NotResumableError`` for an execution in another status, or of an agent that has ended.
        """
        moment = aware(now or timezone.now(), "now")
        rows = HandlerExecution.objects.filter(
            pk=self.pk, status__in=[HandlerStatus.FAILED, HandlerStatus.PARKED], run__in=AgentRun.objects.unfinished()
        )
        changes = {"status": HandlerStatus.PENDING, "attempt": 0, "deferrals": 0, "error": ""}
        if not rows.update(**changes, finished_at=None, parked_at=None, due_at=moment):
            raise NotResumableError(
                f"{self} is {self.status}; only a failed or parked execution of an unfinished agent can be resumed."
            )
        touch_after_commit([self.run_id])
        self.refresh_from_db()


AGENTS_PER_STATEMENT = 500


def touch(run_pks: Iterable[int]) -> None:
    """Lower ``wake_at`` of agents that are not leased to the earliest pending execution of their mailbox."""
    pks = sorted(set(run_pks))
    for start in range(0, len(pks), AGENTS_PER_STATEMENT):
        _lower_wake_at(AgentRun.objects.filter(pk__in=pks[start : start + AGENTS_PER_STATEMENT]))
    ring_after_commit(alias_of(AgentRun), AgentRun)


def touch_after_commit(run_pks: Iterable[int]) -> None:
    """Touch agents now, and again when the caller's transaction has committed.

    A worker that leases an agent now may release it before that commit, and not see what is not committed yet.
    """
    pks = list(run_pks)
    touch(pks)
    transaction.on_commit(lambda: touch(pks), using=alias_of(AgentRun), robust=True)


def _lower_wake_at(runs: QuerySet[AgentRun, AgentRun]) -> int:
    pending = HandlerExecution.objects.filter(run=OuterRef("pk"), status=HandlerStatus.PENDING)
    # A subquery with a LIMIT stays one index lookup for each agent; EXISTS may become a hash of all mailboxes.
    first = Subquery(pending.order_by("due_at").values("due_at")[:1])
    resting = runs.filter(lease=None, status=AgentStatus.ACTIVE, started_at__isnull=False)
    return resting.filter(Q(wake_at=None) | Q(wake_at__gt=first)).update(wake_at=first)
