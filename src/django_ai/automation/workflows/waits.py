"""Waits, the run's side: a run registers what it waits for, and looks for what has arrived already.

The two sides never lock each other. Each commits first and then looks for the other:

* a run *registers*: the commit of its step inserts a ``Wait`` for each thing that it waits for and releases the lease.
  Then ``settle`` looks for a signal or an occurrence that has arrived already, and consumes it, or writes the deadline
  as the next ``wake_at``. Until then the row is due soon, so a worker that dies in between only delays the look;
* a signal or an occurrence *arrives*: it commits first. Then the runs that wait under its keys are woken
  (``delivery``).

Whichever commits last sees the other, on any database, so no wake-up is lost. Each write names the state that it
changes (not leased, still waiting, same ``seq``), so if both see each other, one wins. A leased run is never changed.

A timeout wins by a commit, too (``time_out``): the worker that fires it looks first, and what was committed before that
look wins, even after the deadline.

A run can receive what has a position after its own (``queues/positions.py``) and is not in its history, the record of
what it has consumed. No clock decides: neither when a worker reached the run, nor the difference between two machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, Min, OuterRef, Q

from ..conf import conf
from ..db.writer import alias_of
from ..events.definitions import EventDefinition, EventTrigger
from ..events.matching.lookback import occurred_matching
from ..events.matching.match import address
from ..events.models import Event
from ..events.sources import event_sources
from ..events.subscriptions import subscriptions
from ..events.windows import collected_by
from ..queues.advance import advance
from ..queues.lease import revoke
from ..values.clock import Clock
from .branches import Arrival, collect, winner, withdraw_children
from .current_run import KIND, WakeReason
from .delivery import signal_satisfies
from .ending import end_runs
from .models import WHOLE_RUN, Signal, StepExecution, Wait, WorkflowRun, WorkflowRunQuerySet
from .registration import own_declaration
from .statuses import WorkflowStatus
from .wait_keys import EVENT_CHANNEL, SUBFLOW
from .waking import wake

__all__ = [
    "ended_by_deletion",
    "finish_registration",
    "first_arrival",
    "is_there",
    "overdue",
    "settle",
    "time_out",
    "waits_of",
]


def waits_of(run: WorkflowRun) -> list[Wait]:
    """Return what the run waits for now, the earliest deadline first."""
    return list(run.waits.filter(visit=run.visit).order_by(F("deadline").asc(nulls_last=True), "pk"))


@dataclass(frozen=True, slots=True)
class Message:
    """A signal or an event that has arrived for one of a run's waits."""

    wait: Wait
    row: Signal | Event

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sort key: what was delivered comes before what is still on its way."""
        return self.row.position is None, self.row.position or 0, self.row.pk


def settle(run: WorkflowRun, clock: Clock, waits: list[Wait] | None = None) -> None:
    """Look for what the run waits for, after its registration has committed: consume it, or write the deadline.

    The run has no lease here; every write is fenced on ``seq``. ``waits``: its rows, if they are known.
    """
    if run.wake_reason == WakeReason.ALL:
        _settle_all(run, clock)
        return
    waits = waits_of(run) if waits is None else waits
    mine = WorkflowRun.objects.filter(pk=run.pk, seq=run.seq, lease=None, status=WorkflowStatus.SUSPENDED)
    message = first_arrival(run, waits)
    if message is None:
        if waits and all(_cannot_arrive(run, wait) for wait in waits if not wait.is_whole):
            _end_of_entity(run, mine, clock())
        else:
            mine.update(wake_at=_next_deadline(run, waits))
        return
    alias, wait = alias_of(WorkflowRun), message.wait
    with transaction.atomic(using=alias):
        arrival = Arrival.of(message.row)
        if wake(mine, [run.pk], arrival, wait.then, clock(), branch=wait.branch) and not _consume(message, clock()):
            transaction.set_rollback(True, using=alias)  # delivered just now, which wakes the run


def _settle_all(run: WorkflowRun, clock: Clock) -> None:
    """Let a run that waits for all receive what has arrived or is over, one after the other, until it is woken or the
    rest is still to come.

    If something arrives meanwhile, ``seq`` has changed, and the run looks again.
    """
    alias, seq = alias_of(WorkflowRun), -1
    waiting = WorkflowRun.objects.filter(pk=run.pk, visit=run.visit, lease=None, status=WorkflowStatus.SUSPENDED)
    while (row := waiting.first()) is not None and row.seq != seq:
        seq, now, waits = row.seq, clock(), waits_of(row)
        branches = [wait for wait in waits if not wait.is_whole]
        mine = waiting.filter(seq=seq)
        message = first_arrival(row, branches)
        if message is not None:
            with transaction.atomic(using=alias):
                received = collect({row.pk: [message.wait.pk]}, Arrival.of(message.row), now)
                if received and not _consume(message, now):
                    transaction.set_rollback(True, using=alias)
        elif over := [wait for wait in branches if wait.is_over(now)]:
            with transaction.atomic(using=alias):
                for wait in over:
                    collect({row.pk: [wait.pk]}, Arrival(reason_of_timeout(wait)), now)
        elif any(_cannot_arrive(row, wait) for wait in branches):
            _end_of_entity(row, mine, now)
        else:
            mine.update(wake_at=_next_deadline(row, waits))


def _consume(message: Message, now: datetime) -> bool:
    """Take a signal out of the run's inbox, after the run was changed: locks are taken in one order, as in ``deliver``.
    Return False if it is not there any more."""
    row = message.row
    if isinstance(row, Event) or row.run_id is None:
        return True
    unconsumed = Signal.objects.filter(pk=row.pk, consumed_at=None)
    return bool(revoke(unconsumed, consumed_at=now, delivered_at=now, wake_at=None))


def _next_deadline(run: WorkflowRun, waits: Sequence[Wait]) -> datetime | None:
    """Return when a run that waits is next due: at its own deadline, or at that of a wait."""
    deadlines = [run.next_deadline, *(wait.deadline for wait in waits)]
    return min((each for each in deadlines if each is not None), default=None)


def _end_of_entity(run: WorkflowRun, mine: WorkflowRunQuerySet, now: datetime) -> None:
    reason = f"{run.entity_type} {run.entity_id}, whose event it waited for, was deleted."
    end_runs(mine, WorkflowStatus.CANCELLED, reason, now, breaks_path=True)


def overdue(run: WorkflowRun, waits: Sequence[Wait], now: datetime) -> Wait | None:
    """Return the wait whose deadline ends the waiting now, if nothing has arrived. Of a run that waits for all, only
    the timeout of the whole does; ``settle`` ends a branch by its own deadline."""
    ending = [wait for wait in waits if wait.is_whole] if run.wake_reason == WakeReason.ALL else waits
    return next((wait for wait in ending if wait.is_over(now)), None)


def is_there(run: WorkflowRun, waits: list[Wait]) -> bool:
    """Return whether something that the run waits for has arrived, when its deadline has passed.

    What was committed before a worker fires the timeout wins, even if it was not consumed yet: workers were late, or
    the worker that registered the wait died before it had looked.
    """
    return first_arrival(run, waits) is not None


def time_out(run: WorkflowRun, over: Wait, now: datetime) -> None:
    """Let the timeout win, with a commit of its own before its step runs.

    What arrives from now on is too late for these waits, even if the step is retried or its worker dies.
    """
    changes: dict[str, Any] = {"wake_reason": reason_of_timeout(over).value, "wake_step": over.on_timeout}
    if over.branch:
        changes["branches"] = winner(over.branch)
    with transaction.atomic(using=alias_of(WorkflowRun)):
        advance(run, {"status": WorkflowStatus.RUNNING, "wake_ref": None, **changes, "losses": run.losses})
        if over.branch or over.is_whole:
            withdraw_children(run.waits.all(), "it has waited long enough", now)
        Wait.objects.of_visits().filter(run=run.pk).delete()


def reason_of_timeout(over: Wait) -> WakeReason:
    """Return why the step is entered that follows ``over``: a branch that is a ``sleep``, or a timeout."""
    return WakeReason.TIMER if over.is_timer and not over.is_whole else WakeReason.TIMEOUT


def finish_registration(run: WorkflowRun, clock: Clock, waits: list[Wait]) -> None:
    """Finish a registration whose worker died before it had looked: release the lease first, then look."""
    advance(run, {"wake_at": run.by_deadline(clock() + conf().LEASE), "lease": None})
    settle(run, clock, waits)


def first_arrival(run: WorkflowRun, waits: Sequence[Wait]) -> Message | None:
    """Return the first message that has arrived for one of ``waits``, or None."""
    waits = [wait for wait in waits if not wait.is_timer]
    inbox = _in_inbox(run, [wait.channel for wait in waits])
    found = [(wait, inbox.get(wait.channel) or _broadcast(run, wait) or _occurrence(run, wait)) for wait in waits]
    messages = [Message(wait, row) for wait, row in found if row is not None]
    return min(messages, key=lambda each: each.order, default=None)


def _consumed(run: WorkflowRun, reason: WakeReason) -> Exists:
    """Return whether the run has consumed a row: one index lookup for each, for a history of any length."""
    return Exists(StepExecution.objects.filter(run=run, wake_reason=reason, wake_ref=OuterRef("pk")))


def _in_inbox(run: WorkflowRun, channels: Sequence[str]) -> dict[str, Signal]:
    """Return the first signal of each channel in the run's inbox, which may hold many."""
    inbox = Signal.objects.filter(run=run, name__in=channels, consumed_at=None).order_by("pk")
    if len(channels) > 1:
        firsts = inbox.order_by().values("name").annotate(first=Min("pk")).values_list("first", flat=True)
        inbox = Signal.objects.filter(pk__in=list(firsts))
    return {signal.name: signal for signal in inbox[: len(channels)]}


def _since(run: WorkflowRun, wait: Wait) -> int:
    """Return the position after which arrivals count: that of the run, from its creation or the date that was planned;
    what cancels the run has its own."""
    return wait.since if wait.visit == WHOLE_RUN else run.position


def _broadcast(run: WorkflowRun, wait: Wait) -> Signal | None:
    """Return a broadcast signal that has arrived since the wait counts, or is on its way."""
    if wait.channel.startswith(f"{SUBFLOW}:"):
        return None  # a child reports its end to the inbox
    arrived = Q(position__gt=_since(run, wait)) | Q(position=None, delivered_at=None, wake_at__isnull=False)
    signals = Signal.objects.filter(arrived, run=None, name=wait.channel).filter(~_consumed(run, WakeReason.SIGNAL))
    ordered = signals.order_by(F("position").asc(nulls_last=True), "pk")
    if not wait.channel.startswith(EVENT_CHANNEL):
        return ordered.first()
    return next((signal for signal in ordered if signal_satisfies(signal, wait)), None)


def _occurrence(run: WorkflowRun, wait: Wait) -> Event | None:
    """Return an event that has occurred since the wait counts, satisfies it, and is not consumed yet."""
    if not wait.channel.startswith(EVENT_CHANNEL):
        return None
    name = wait.channel.removeprefix(EVENT_CHANNEL)
    events = Event.objects.filter(event_name=name, position__gt=_since(run, wait))
    events = events.filter(~_consumed(run, WakeReason.EVENT))
    if run.event_id is not None:
        events = events.exclude(pk=run.event_id)  # a run never waits for the event that started it
        if subscriptions.has_windows:
            events = events.exclude(pk__in=collected_by(KIND, run.pk))
    if wait.namespace:
        events = events.filter(namespace=wait.namespace)
    if not wait.match:
        return events.order_by("position").first()
    own = own_declaration(run, name)
    if own is not None and wait.match == {"pk": run.entity_id}:
        return events.filter(entity_type=own.label, entity_id=run.entity_id).order_by("position").first()
    sources = event_sources(name)
    return next(occurred_matching(events, sources, name, wait.match, address(name, wait.match, sources)), None)


def ended_by_deletion(keys: Sequence[str]) -> list[Wait]:
    """Return the waits under ``keys``, whose events cannot occur any more, of runs that have nothing else to wait for.
    A run that waits for the first of several continues to wait for the others."""
    waits = list(Wait.objects.under(list(keys)))
    branches = [wait.pk for wait in waits if wait.branch]
    if not branches:
        return waits
    first = Wait.objects.filter(pk__in=branches).exclude(run__wake_reason=WakeReason.ALL).values_list("run", flat=True)
    others = Wait.objects.open().filter(run__in=list(first)).exclude(branch="").exclude(pk__in=branches)
    waiting = set(others.values_list("run", flat=True))
    return [wait for wait in waits if wait.run_id not in waiting]


def has_delete_trigger(definition: EventDefinition) -> bool:
    """Return whether the deletion of its entity makes the event occur."""
    return EventTrigger.DELETE in definition.triggers


def pending_deletions(label: str, entity_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Return the entity and the event of each recorded deletion that has not occurred yet."""
    deletions = Event.objects.filter(entity_type=label, entity_id__in=entity_ids, trigger=EventTrigger.DELETE)
    return set(deletions.filter(occurred_at=None).values_list("entity_id", "declared_as"))


def _cannot_arrive(run: WorkflowRun, wait: Wait) -> bool:
    """Return whether the wait is for an event of the run's own entity, which was deleted while its step was running."""
    own = own_declaration(run, wait.channel.removeprefix(EVENT_CHANNEL))
    if own is None or wait.match != {"pk": run.entity_id}:
        return False
    name = own.definition.name
    if has_delete_trigger(own.definition) and (run.entity_id, name) in pending_deletions(own.label, [run.entity_id]):
        return False
    pk = own.owner._meta.pk.to_python(run.entity_id)
    return not own.owner._base_manager.using(alias_of(own.owner)).filter(pk=pk).exists()
