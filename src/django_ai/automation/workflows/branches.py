"""What the branches of a choice do to their run: ``wait_all`` collects what they bring, and what has lost is withdrawn.

``WorkflowRun.branches`` is a list, in the order of arrival. Of ``wait_all`` it has an entry for each branch that is
over: its name, the reason, and what has arrived, with its payload, because the signal or event may be pruned before the
last branch is over. Of ``wait_any`` it has the name of the winner; its payload is that of the row in ``wake_ref``. It
stays until the step that follows has committed an outcome, so each attempt of that step reads the same.

A run that waits for all has the ``wake_reason`` "all" from the beginning. Each arrival locks the run, then reads its
waits: whichever comes last sees that no other branch is open, and wakes the run. What has arrived is recorded in the
history at once (outcome "arrived"), so it is not received a second time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Q

from ..db.locks import locked
from ..db.writer import alias_of
from ..events.models import Event
from ..queues.lease import revoke
from ..queues.notifier import ring_after_commit
from ..state.encryption import Unreadable
from .current_run import WakeReason
from .ending import end_runs
from .models import Signal, StepExecution, Wait, WaitQuerySet, WorkflowRun
from .statuses import WorkflowStatus
from .wait_keys import EVENT_CHANNEL, SUBFLOW

RUNS_PER_STATEMENT = 1000
"""Runs that one statement wakes or locks."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What ends a wait: a signal, an event (``ref``: its primary key), or time."""

    reason: WakeReason
    ref: int | None = None
    channel: str = ""
    payload: Mapping[str, Any] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    """More changes of the run: an event hands over the depth of its chain of causes."""

    @classmethod
    def of(cls, row: Signal | Event) -> Arrival:
        if isinstance(row, Event):
            channel, depth = f"{EVENT_CHANNEL}{row.event_name}", {"depth": row.depth + 1}
            return cls(WakeReason.EVENT, row.pk, channel, row.payload, depth)
        return cls(WakeReason.SIGNAL, row.pk, row.name, row.payload)

    def entry(self, branch: str) -> dict[str, Any]:
        """Return the entry in ``WorkflowRun.branches``."""
        found: dict[str, Any] = {"branch": branch, "reason": self.reason.value}
        if self.ref is not None:
            found |= {"ref": self.ref, "channel": self.channel, "payload": self.payload}
        return found


def winner(branch: str) -> list[dict[str, Any]] | None:
    """Return ``WorkflowRun.branches`` of a ``wait_any`` that ``branch`` has won."""
    return [{"branch": branch}] if branch else None


def collect(fitting: Mapping[int, Collection[int]], arrival: Arrival, now: datetime) -> int:
    """Let each run that waits for all receive ``arrival`` in one branch, and wake those whose last branch it was.

    In the caller's transaction. ``fitting``: for each run the primary keys of the waits that the arrival fits. Returns
    how many runs have received it: a run that was woken, is leased, or has received it already does not.
    """
    pks, received = sorted(fitting), 0
    for start in range(0, len(pks), RUNS_PER_STATEMENT):
        received += _collect(pks[start : start + RUNS_PER_STATEMENT], fitting, arrival, now)
    return received


def _collect(pks: list[int], fitting: Mapping[int, Collection[int]], arrival: Arrival, now: datetime) -> int:
    suspended = WorkflowRun.objects.filter(pk__in=pks, status=WorkflowStatus.SUSPENDED, lease=None)
    runs = list(locked(suspended.filter(wake_reason=WakeReason.ALL)).only("visit", "branches").order_by("pk"))
    waits: dict[int, list[Wait]] = defaultdict(list)
    # Locked, too: such a read sees what is committed now, also in a transaction that reads from a snapshot.
    for wait in locked(Wait.objects.filter(run__in=[run.pk for run in runs])).order_by("pk"):
        waits[wait.run_id].append(wait)
    over, woken, history = [], [], []
    for run in runs:
        if isinstance(run.branches, Unreadable):
            revoke(WorkflowRun.objects.filter(pk=run.pk), wake_at=now)  # parked, until a worker has the key
            continue
        entries, mine = run.branches or [], [wait for wait in waits[run.pk] if wait.visit == run.visit]
        ended = next((wait for wait in mine if wait.pk in fitting[run.pk]), None)
        has_it = arrival.ref is not None and any(_is_of(each, arrival) for each in entries)
        if ended is None or has_it:
            continue
        changes = {"branches": [*entries, arrival.entry(ended.branch)], **arrival.changes}
        if not any(wait.branch for wait in mine if wait is not ended):
            changes |= {"status": WorkflowStatus.RUNNING, "wake_at": now}
            woken.append(run.pk)
        # Raises ``seq`` also while others are open: a worker that looks at this moment looks again.
        revoke(WorkflowRun.objects.filter(pk=run.pk), **changes)
        over.append(ended.pk)
        history.append(_history(run, ended, arrival, now))
    Wait.objects.of_visits().filter(Q(pk__in=over) | Q(run__in=woken)).delete()
    StepExecution.objects.bulk_create(history)
    if woken:
        ring_after_commit(alias_of(WorkflowRun), WorkflowRun)
    return len(over)


def _is_of(entry: Mapping[str, Any], arrival: Arrival) -> bool:
    return (entry["reason"], entry.get("ref")) == (arrival.reason, arrival.ref)


def _history(run: WorkflowRun, wait: Wait, arrival: Arrival, now: datetime) -> StepExecution:
    """Return the record that a run has received ``arrival``. Its step is the branch."""
    return StepExecution(
        run_id=run.pk,
        step=wait.branch,
        visit=run.visit,
        attempt=0,
        started=None,
        finished=now,
        outcome=StepExecution.ARRIVED,
        wake_reason=arrival.reason.value,
        wake_ref=arrival.ref,
    )


def withdraw_children(waits: WaitQuerySet, why: str, now: datetime) -> None:
    """Cancel the child runs of ``waits``, branches that have lost. Their parents hear nothing more of them."""
    lost = dict(waits.filter(channel__startswith=f"{SUBFLOW}:").values_list("channel", "run"))
    if not lost:
        return
    children = WorkflowRun.objects.unfinished().filter(parent__in=set(lost.values()), parent_channel__in=list(lost))
    pks = list(children.values_list("pk", flat=True))
    losing = WorkflowRun.objects.filter(pk__in=pks)
    losing.update(parent_channel="")
    end_runs(losing, WorkflowStatus.CANCELLED, f"Its parent no longer waits for it: {why}.", now)
