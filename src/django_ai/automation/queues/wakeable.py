"""``Wakeable``: the row that knows when it is next due. One column is timer, queue, visibility timeout and recovery.

``wake_at`` is when a worker must next perform the row. A claim (``claim``) writes a fresh ``lease`` and moves
``wake_at`` to the end of that lease, so a row whose worker died becomes due again. Every progress write is fenced on
(``lease``, ``seq``) and raises ``seq``. Code that changes a row from outside clears its lease in the same write, so a
late write of the worker is refused. ``losses`` counts the leases that ran out since the last progress. ``parked_at`` is
since when a row has been parked, or was parked when it ended.

Events, executions, signals and runs are Wakeables of the layers above; ``Maintenance`` is the engine's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from django.db import connections, models
from django.utils import timezone
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..db.indexes import PartialIndex
from ..db.writer import AutomationModel
from ..values.clock import Clock
from ..values.languages import in_english
from ..values.text import last_line


def _unsupported(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("This model was registered without this part of its Behaviour.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What the layer that owns a model does with its rows. A model is data and imports no code that works with it."""

    perform: Callable[[Any, Clock], None]
    park: Callable[..., None]
    perform_batch: Callable[[Sequence[Any], Clock], None] = _unsupported
    read_ahead: Callable[[Sequence[Any]], None] | None = None
    cancel: Callable[[models.QuerySet[Any], datetime], int] = _unsupported
    fire_now: Callable[[Any, datetime], bool] = _unsupported
    move: Callable[[Any, datetime, datetime], bool] = _unsupported
    resume: Callable[[Any, datetime], None] = _unsupported
    edit_context: Callable[[Any, Mapping[str, Any], str], None] = _unsupported


class Wakeable(AutomationModel):
    """The columns and the interface of a row that becomes due."""

    wake_at = models.DateTimeField(_("wake at"), null=True, blank=True, editable=False)
    lease = models.CharField(_("lease"), max_length=100, null=True, blank=True, editable=False)
    seq = models.PositiveIntegerField(_("seq"), default=0, editable=False)
    losses = models.PositiveSmallIntegerField(_("losses"), default=0, editable=False)
    parked_at = models.DateTimeField(_("parked at"), null=True, blank=True, editable=False)

    drain_order: ClassVar[int] = 50
    """``drain`` performs models with a lower number first: timers before the work that they cause."""

    kind: ClassVar[str] = ""
    """The name of this model in ``automation_worker --kinds``."""

    accompanies: ClassVar[Collection[str]] = ()
    """Kinds of rows whose workers also perform rows of this model, whatever they were told to perform."""

    claim_batches: ClassVar[int] = 1
    """How many times ``BATCH`` rows one claim may lease. Above 1, ``perform_batch`` performs a batch in one call; with
    1, rows are performed one by one."""

    class Meta:
        abstract = True

    behaviour: ClassVar[Behaviour]
    """Set by ``registry.register``."""

    def perform(self, clock: Clock) -> None:
        """Perform the work that is due on this row. Called by ``drain``, which has leased the row."""
        self.behaviour.perform(self, clock)

    @classmethod
    def perform_batch(cls, rows: Sequence[Any], clock: Clock) -> None:
        """Perform the work that is due on ``rows``, which are leased, in few transactions. After an error, which
        belongs to no single row, ``drain`` performs those that are still leased one by one."""
        cls.behaviour.perform_batch(rows, clock)

    def park(self, reason: str, clock: Clock = timezone.now, *, awaiting_deploy: bool = False) -> None:
        """Park the row with ``reason`` until an operator resumes it, or, with ``awaiting_deploy``, until a worker has
        the code that it needs. Fenced; raises ``LeaseLostError``."""
        self.behaviour.park(self, reason, clock(), awaiting_deploy=awaiting_deploy)

    def record_loss(self, clock: Clock) -> None:
        """Record in the row's history that its lease ran out; called when the row is claimed again."""

    @classmethod
    def unfinished(cls) -> models.QuerySet[Any]:
        """Return the rows that still have something to do or to wait for."""
        raise NotImplementedError

    @classmethod
    def load_reasons(cls, rows: Sequence[Any]) -> None:
        """Load what ``waits_for`` needs of other tables for all of ``rows``, in few queries."""

    @in_english
    def waits_for(self, now: datetime | None = None) -> str:
        """Return what this unfinished row waits for, now or at another moment. Empty: nothing, so it is stuck.

        In English, whatever language is active, as in logs and errors; ``waiting_text`` is for pages.
        """
        return self.waiting_text(now)

    def waiting_text(self, now: datetime | None = None) -> str:
        """Return ``waits_for`` in the active language."""
        now = now or timezone.now()
        if self.lease is not None:
            if self.wake_at is None:
                return ""
            if self.wake_at > now:
                return gettext("%s, which has leased it") % self.holder
            return gettext("%(worker)s: the lease of %(holder)s ran out at %(moment)s") % {
                "worker": self.needed_worker,
                "holder": self.holder,
                "moment": at_text(self.wake_at),
            }
        if self.wake_at is not None and self.wake_at <= now:
            return gettext("%(worker)s: due since %(moment)s") % {
                "worker": self.needed_worker,
                "moment": at_text(self.wake_at),
            }
        return self.waiting_reason(now)

    def waiting_reason(self, now: datetime) -> str:
        """Return what a row waits for that is neither leased nor due. Empty: nothing."""
        raise NotImplementedError

    @property
    def error_summary(self) -> str:
        """The line of its ``error`` that names the cause, safe to print. Empty: it has none."""
        return last_line(getattr(self, "error", ""))

    def parked_reason(self) -> str:
        """Return what a parked row waits for, and why it is parked."""
        reason = self.error_summary
        if self.wake_at is None:
            return gettext("an operator, to resume it: %s") % reason
        return gettext("missing code, next checked at %(moment)s, or an operator, to resume it: %(reason)s") % {
            "moment": at_text(self.wake_at),
            "reason": reason,
        }

    @property
    def needed_worker(self) -> str:
        """Which worker performs the row when it is due."""
        return gettext("a worker")

    @property
    def holder(self) -> str:
        """The process that has leased the row: host and process id."""
        return (self.lease or "").rsplit(":", 1)[0]

    @property
    def leased_at(self) -> datetime | None:
        """When it has leased the row. None: it is not leased, or by a worker of an earlier release."""
        return leased_at(self.lease or "")


SINCE = "-"
"""What ends the moment of the claim in a lease token: milliseconds since 1970, in hexadecimal digits."""


def leased_at(lease: str) -> datetime | None:
    """Return when a lease began; None if its token does not say so."""
    since, separator, _ = lease.rpartition(":")[2].partition(SINCE)
    try:
        return datetime.fromtimestamp(int(since, 16) / 1000, UTC) if separator else None
    except (ValueError, OverflowError, OSError):  # a token that somebody else has written
        return None


def at_text(moment: datetime) -> str:
    """Return ``moment`` as a string for display, in the current time zone, to the second."""
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return f"{local:%Y-%m-%d %H:%M:%S}"


def attempt_text(number: int, moment: datetime, deferrals: int, error: str) -> str:
    """Return when a row is tried again, for display: its attempt ``number`` at ``moment``. ``deferrals``: how many
    times in a row its code has raised ``RetryAfter``; ``error``: why."""
    text = timed(gettext("attempt %d") % number, moment)
    return f"{text}, {deferral_text(deferrals, error)}" if deferrals else text


def timed(what: str, moment: datetime) -> str:
    """Return what a row waits for, with its time."""
    return f"{what}, {at_text(moment)}"


def until_text(what: str, moment: datetime | None) -> str:
    """Return what a row waits for, and until when at the latest."""
    return what if moment is None else gettext("%(what)s, until %(moment)s") % {"what": what, "moment": at_text(moment)}


def deferral_text(deferrals: int, error: str) -> str:
    given = {"number": deferrals, "reason": last_line(error).rpartition("RetryAfter: ")[2]}
    return (
        ngettext(
            "because its code raised RetryAfter: %(reason)s",
            "because its code raised RetryAfter %(number)d times in a row: %(reason)s",
            deferrals,
        )
        % given
    )


def wake_index(label: str) -> PartialIndex:
    """Return the index that finds due rows of the model ``label``."""
    return PartialIndex(fields=["wake_at"], name=f"{label}_wake", condition=models.Q(wake_at__isnull=False))


def entity_index(label: str) -> PartialIndex:
    """Return the index that finds the runs of one entity, for the model ``label``."""
    return PartialIndex(
        fields=["entity_id", "entity_type"], name=f"{label}_entity", condition=models.Q(entity_id__gt="")
    )


def parked_index(label: str) -> PartialIndex:
    """Return the index that finds parked rows of the model ``label``, however many rows have ended."""
    return PartialIndex(fields=["parked_at"], name=f"{label}_parked", condition=models.Q(status="parked"))


PARKED_ROWS = models.Q(status="parked")


def newest_parked(rows: models.QuerySet[Any], parked: models.Q = PARKED_ROWS) -> models.QuerySet[Any]:
    """Return those of ``rows`` that are ``parked``, in the order that their index gives: the newest first.

    Each parked row has a ``parked_at``. MariaDB, whose index has all rows, needs that condition, to stop at the first
    row that is not parked. PostgreSQL would expect so few rows because of it that it would read and sort all of them.
    """
    found = rows.filter(parked).order_by("-parked_at")
    return found.filter(parked_at__isnull=False) if connections[rows.db].vendor == "mysql" else found


def ended_index(label: str, *columns: str) -> PartialIndex:
    """Return the index that finds the rows of the model ``label`` that have ended last: one entry for each row, once it
    has ended. It has all columns that the overview counts by, so that no row is read."""
    condition = models.Q(finished_at__isnull=False)
    return PartialIndex(fields=["finished_at", "status", *columns], name=f"{label}_ended", condition=condition)


def failed_index(label: str) -> PartialIndex:
    """Return the index that finds failed rows of the model ``label``, however many rows have ended.

    It starts with the status, because on MariaDB it contains all rows.
    """
    return PartialIndex(fields=["status", "finished_at"], name=f"{label}_failures", condition=models.Q(status="failed"))
