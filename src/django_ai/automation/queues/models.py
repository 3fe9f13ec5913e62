"""``Wakeable``: the row that knows when it is next due. One column is timer, queue, visibility timeout and recovery.

``wake_at`` says when the row next wants a worker. A claim (``lease.claim``) writes a fresh ``lease`` and pushes
``wake_at`` to the end of that lease, so a row whose worker died is simply due again. Every progress write is fenced on
(``lease``, ``seq``) and raises ``seq``; whoever changes a row from outside clears its lease in the same write, so the
worker's late write is refused. ``losses`` counts the leases that ran out since the last progress. ``parked_at`` says
since when a row has been parked, or was when it was ended.

Events, executions, signals and runs are Wakeables of the floors above. This app has three tables of its own: ``Worker``
says which processes work, for a person and ``automation_health``, and nothing that is promised depends on it;
``Arrival`` numbers all that comes for those who wait (``positions``); ``Maintenance`` has a row for each periodic task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..db.indexes import PartialIndex, unique
from ..db.writer import AutomationModel
from ..values.clock import Clock
from ..values.text import last_line


def _unsupported(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("This model was registered without this part of its Behaviour.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What the layer that owns a model does with its rows. A model is data, and imports nothing that works with it."""

    perform: Callable[[Any, Clock], None]
    park: Callable[..., None]
    perform_batch: Callable[[Sequence[Any], Clock], None] = _unsupported
    cancel: Callable[[models.QuerySet[Any], datetime], int] = _unsupported


class Wakeable(AutomationModel):
    """The columns and the contract of a row that moves in time."""

    wake_at = models.DateTimeField(_("wake at"), null=True, blank=True, editable=False)
    lease = models.CharField(_("lease"), max_length=100, null=True, blank=True, editable=False)
    seq = models.PositiveIntegerField(_("seq"), default=0, editable=False)
    losses = models.PositiveSmallIntegerField(_("losses"), default=0, editable=False)
    parked_at = models.DateTimeField(_("parked at"), null=True, blank=True, editable=False)

    drain_order: ClassVar[int] = 50
    """Models with a lower number are drained first: timers before the work that they cause."""

    queue: ClassVar[str] = ""
    """What rows of this model are called in ``automation_worker --queues``."""

    together: ClassVar[int] = 1
    """How many times ``BATCH`` rows a claim may take, because ``perform_batch`` performs them in one go; 1: they are
    performed one by one."""

    class Meta:
        abstract = True

    behaviour: ClassVar[Behaviour]
    """What the engine does with these rows; ``registry.register`` sets it."""

    def perform(self, clock: Clock) -> None:
        """Do what this row is due for. Called by ``drain``, which has leased the row."""
        self.behaviour.perform(self, clock)

    @classmethod
    def perform_batch(cls, rows: Sequence[Any], clock: Clock) -> None:
        """Do what ``rows``, which are leased, are due for, in few transactions. An error of it belongs to no row: those
        that are still leased are then performed one by one."""
        cls.behaviour.perform_batch(rows, clock)

    def park(self, reason: str, clock: Clock = timezone.now, *, awaiting_deploy: bool = False) -> None:
        """Park the row with ``reason`` until an operator resumes it; with ``awaiting_deploy`` until a worker has the
        code that it needs. Fenced; raises ``LeaseLostError``."""
        self.behaviour.park(self, reason, clock(), awaiting_deploy=awaiting_deploy)

    def record_loss(self, clock: Clock) -> None:
        """Leave a trace of the lease that ran out; called when a lost row is claimed again."""

    @classmethod
    def unfinished(cls) -> models.QuerySet[Any]:
        """Return the rows that have still something to do or to wait for."""
        raise NotImplementedError

    def waits_for(self, now: datetime) -> str:
        """Name the one thing that this unfinished row waits for. Empty: there is none, and it hangs, which is a bug."""
        if self.lease is not None:
            if self.wake_at is None:
                return ""
            if self.wake_at > now:
                return f"{self.holder}, which has it in hand"
            return f"a worker: the lease of {self.holder} ran out at {at_text(self.wake_at)}"
        if self.wake_at is not None and self.wake_at <= now:
            return f"a worker: due since {at_text(self.wake_at)}"
        return self.waiting_reason(now)

    def waiting_reason(self, now: datetime) -> str:
        """Name what a row waits for that is in nobody's hands and not due; empty if there is nothing."""
        raise NotImplementedError

    def parked_reason(self) -> str:
        """Name what lets a parked row go on, and why it lies there."""
        reason = last_line(getattr(self, "error", ""))
        if self.wake_at is None:
            return f"a person, to resume it: {reason}"
        return f"code that it lacks, looked for at {at_text(self.wake_at)}, or a person, to resume it: {reason}"

    @property
    def holder(self) -> str:
        """The process that has the row in hand, as a person knows it: host and process id."""
        return (self.lease or "").rsplit(":", 1)[0]


def at_text(moment: datetime) -> str:
    """Return ``moment`` for a person, in the current time zone, to the second."""
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return f"{local:%Y-%m-%d %H:%M:%S}"


def wake_index(label: str) -> PartialIndex:
    """Return the index that finds due rows of the model that is called ``label``."""
    return PartialIndex(fields=["wake_at"], name=f"{label}_wake", condition=models.Q(wake_at__isnull=False))


def entity_index(label: str) -> PartialIndex:
    """Return the index that finds the runs of one entity, of the model that is called ``label``."""
    return PartialIndex(
        fields=["entity_id", "entity_type"], name=f"{label}_entity", condition=models.Q(entity_id__gt="")
    )


def parked_index(label: str) -> PartialIndex:
    """Return the index that finds parked rows of the model that is called ``label``, however many have ended."""
    return PartialIndex(fields=["parked_at"], name=f"{label}_parked", condition=models.Q(status="parked"))


def failed_index(label: str) -> PartialIndex:
    """Return the index that finds failed rows of the model that is called ``label``, however many have ended.

    It begins with the status for MariaDB, where it holds all rows.
    """
    return PartialIndex(fields=["status", "finished_at"], name=f"{label}_failures", condition=models.Q(status="failed"))


class Worker(AutomationModel):
    """A process that performs due rows (``presence``). Its times are the database's: machines may differ about theirs.

    ``queues``: which rows it looks at, with commas; empty: all. ``worked``: for each queue, how many seconds before
    ``seen_at`` the process last performed a row of it, or had one in hand. ``stopped_at``: it ended in good order.
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
        """When it last performed a row, or had one in hand, as far as its last sign of life says."""
        return self.seen_at - timedelta(seconds=min(self.worked.values())) if self.worked else None


class Arrival(AutomationModel):
    """Something that came for those who wait: an occurrence, or the delivery of a signal. Its key is its position in
    the one order of all that came (``positions``); ``at`` is the database's clock. Only ever added to."""

    at = models.DateTimeField(editable=False)

    class Meta:
        verbose_name = _("arrival")
        verbose_name_plural = _("arrivals")

    def __str__(self) -> str:
        return f"arrival #{self.pk}"


ARRIVAL_SQL = {
    "postgresql": "clock_timestamp()",
    "sqlite": "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now')",
    "mysql": "UTC_TIMESTAMP(6)",
}
"""The database's own clock, as ``Arrival.at`` has it."""


class DatabaseNow(models.Expression):
    """The database's own clock as an expression. ``Now`` of Django is the start of the transaction on PostgreSQL."""

    def __init__(self) -> None:
        super().__init__(output_field=models.DateTimeField())

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[str | int, ...]]:
        return ARRIVAL_SQL[connection.vendor], ()


class Maintenance(Wakeable):
    """A periodic task of the engine (``maintenance``): due again and again, in small bites. ``position``: where its
    sweep goes on; null: it begins anew. ``done``: how many rows it has removed or put right. ``failures``: how often in
    a row it raised ``error``."""

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
        return "" if self.wake_at is None else f"its next turn, {at_text(self.wake_at)}"
