"""``PausableWakeable``: a laned row that can be paused, alone or together with all rows of its name or queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

from django.utils import timezone
from django.utils.translation import gettext

from .lanes import LanedWakeable, shown_name
from .models import HeldRow, Pause
from .pauses import EVERYTHING, described, target_of_name, target_of_queue, target_of_row


class PausableWakeable(LanedWakeable):
    """The interface of a row that can be paused. What its model declares:"""

    pause_scope: ClassVar[str] = ""
    """What rows of one name are: "workflow", "agent", "callback"."""
    pause_field: ClassVar[str] = "name"
    """The field with that name."""
    performable: ClassVar[tuple[str, ...]] = ()
    """The statuses of rows that are neither parked nor finished."""

    class Meta:
        abstract = True

    @property
    def own_target(self) -> str:
        """The target of a pause of this row alone."""
        return target_of_row(self.kind, self.pk)

    @property
    def named_target(self) -> str:
        """The target of a pause of all rows of its name."""
        return target_of_name(self.pause_scope, str(getattr(self, self.pause_field)))

    @property
    def pause_targets(self) -> list[str]:
        """The targets of all pauses that concern the row, the narrowest first."""
        return [self.own_target, self.named_target, target_of_queue(shown_name(self.queue)), EVERYTHING]

    @classmethod
    def give_back(cls, pks: Sequence[int], now: datetime) -> None:
        """Release what rows were admitted to by limits and do not use while they are held, in the transaction that
        holds them. They ask again after the pause."""

    @classmethod
    def load_reasons(cls, rows: Sequence[Any]) -> None:
        """Load which pause concerns each of ``rows``, and which were held by one that has ended, with two queries."""
        super().load_reasons(rows)
        held = held_keys(cls.kind, [row.pk for row in rows])
        for row, target in zip(rows, paused_targets(rows), strict=True):
            row.__dict__ |= {"paused_target": target, "is_held": row.pk in held}

    @property
    def end_of_pause(self) -> str:
        """The end of the pause that concerns the row, in words; empty if there is none."""
        loaded = self.__dict__.get("paused_target")
        target = paused_targets([self])[0] if loaded is None else loaded
        return gettext("the end of the pause of %s") % described(target) if target else ""

    def waiting_text(self, now: datetime | None = None) -> str:
        now = now or timezone.now()
        what, end = super().waiting_text(now), self.end_of_pause
        if end and self.lease is None:
            is_due = self.wake_at is not None and self.wake_at <= now
            return end if is_due or not what else gettext("%(first)s; and %(second)s") % {"first": what, "second": end}
        if not what and self._is_held():
            return gettext("the next reconciliation: the pause that held it has ended")
        return what

    def _is_held(self) -> bool:
        loaded = self.__dict__.get("is_held")
        return self.pk in held_keys(self.kind, [self.pk]) if loaded is None else loaded


def paused_targets(rows: Sequence[PausableWakeable]) -> list[str]:
    """Return for each row the target of the narrowest pause that concerns it; empty: it is not paused. One query."""
    targets = {target for row in rows for target in row.pause_targets}
    paused = set(Pause.objects.filter(target__in=targets).values_list("target", flat=True)) if rows else set()
    return [next((target for target in row.pause_targets if target in paused), "") for row in rows]


def held_keys(kind: str, pks: Sequence[int]) -> set[int]:
    """Return which of the rows of ``kind`` a pause has held that did not give them back yet."""
    found = HeldRow.objects.filter(kind=kind, row_pk__in=pks).values_list("row_pk", flat=True)
    return set(found) if pks else set()
