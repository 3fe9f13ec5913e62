"""Runs and their limits: before a step is entered, a run acquires a slot of each, waits for its turn, or ends.

A run holds a slot of ``concurrency=`` while its steps are executed, of ``throttle=`` until it has started, and of
``singleton=`` until it ends, also on the path of its ``@on_fail`` or ``@on_cancel``. A run that an event starts gets
its Context before it asks, because keys read the Context.
"""

from __future__ import annotations

from datetime import datetime

from django.db import connections, transaction
from django.db.models import F, Q

from ..db.errors import is_database_failure
from ..db.writer import alias_of
from ..events.limit_keys import context_key
from ..queues.advance import advance
from ..queues.limits.acquire import Applicant, RowSlots
from ..queues.limits.owners import SlotOwner, wakeable_owner
from ..queues.limits.release import release_from_outside
from ..queues.models import SlotTerm
from ..queues.parking import park
from ..values.limits import Concurrency, DeclaredLimit, Singleton
from .child_runs import ending_of, wake_parent
from .current_run import KIND
from .definitions import has_limits, limits_of
from .ending import end_runs
from .models import WorkflowRun, WorkflowRunQuerySet
from .run_session import RunSession
from .statuses import MAY_AWAIT_SLOT, WorkflowStatus
from .transitions import deadline_change, ended


def acquire_slots(session: RunSession) -> bool:
    """Return whether the run holds a slot of each of its limits. If not, it waits for its turn or has ended."""
    run, limits = session.run, session.definition.limits
    if not limits:
        return True
    session.row_slots = row_slots = RowSlots(KIND, run.pk)
    if run.is_late(session.clock()):
        return True  # no step is entered any more; its end releases what it has
    if run.ending is not None:
        limits = _on_path(session)
    has_started = run.started_at is not None
    missing = row_slots.missing(limits, has_started=has_started)
    if not missing:
        return True
    if session.context is None and any(each.limit.key for each in missing) and not session.store_context():
        return False
    try:
        keys = {each.name: context_key(each, session.context) for each in missing}
    except Exception as error:
        if is_database_failure(error, connections[alias_of(WorkflowRun)]):
            raise
        session.fail_attempt(error)
        return False

    def let_wait(start: datetime | None) -> None:
        due = run.next_deadline if start is None else run.by_deadline(start)
        waiting = {"status": WorkflowStatus.WAITING, "wake_at": due, "lease": None, "losses": run.losses}
        advance(run, {**waiting, **deadline_change(run)})

    def refuse(reason: str) -> None:
        advance(run, ended(WorkflowStatus.CANCELLED, reason, session.clock()))
        wake_parent(run, ending_of(run), session.clock())

    applicant = Applicant(row=run, name=run.name, has_started=has_started, let_wait=let_wait, refuse=refuse)
    return row_slots.acquire(applicant, missing, lambda each: keys[each.name], session.clock)


def _on_path(session: RunSession) -> tuple[DeclaredLimit, ...]:
    """Return the limits of which a run on its path must hold a slot. It starts nothing, and nothing refuses it.

    One that has failed before it started has never been the only one, and does not wait to be. Without a Context there
    is no key.
    """
    kinds = (Concurrency,) if session.run.started_at is None else (Concurrency, Singleton)
    found = [each for each in session.definition.limits if isinstance(each.limit, kinds)]
    return tuple(each for each in found if session.context is not None or each.limit.key is None)


def release_unstarted(run: WorkflowRun, now: datetime) -> None:
    """Release what a run was admitted to that does not start now after all."""
    if has_limits(run.name):
        release_from_outside(KIND, [run.pk], now)


def park_run(run: WorkflowRun, reason: str, now: datetime, *, awaiting_deploy: bool) -> None:
    """Park a run that this worker has leased. It keeps only what it holds until it ends."""
    if not has_limits(run.name):
        park(run, reason, now, awaiting_deploy=awaiting_deploy)
        return
    with transaction.atomic(using=alias_of(WorkflowRun)):
        park(run, reason, now, awaiting_deploy=awaiting_deploy)
        release_from_outside(KIND, [run.pk], now, terms=(SlotTerm.EXECUTION, SlotTerm.START))


def slot_owner() -> SlotOwner:
    """Return how limits reach runs."""

    def cancel(pk: int, reason: str, now: datetime) -> None:
        end_runs(WorkflowRun.objects.filter(pk=pk), WorkflowStatus.CANCELLED, reason, now)

    def waiting() -> WorkflowRunQuerySet:
        runs = WorkflowRun.objects.filter(Q(wake_at=None) | Q(wake_at=F("deadline")), lease=None)
        return runs.filter(status__in=MAY_AWAIT_SLOT)

    return wakeable_owner(KIND, WorkflowRun, limits_of, waiting, cancel)
