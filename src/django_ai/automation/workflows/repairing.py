"""What every repair of a run from outside has in common: it locks the run, refuses a state in which it makes no sense,
changes the row with ``revoke``, and leaves a record in the history.

The lock makes two repairs, or a repair and a worker, take turns: the second decides on what the first has
committed. A worker that holds the lease is never waited for; where its work may be thrown away its next write is
refused, and elsewhere the repair is.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from django.db import transaction
from django.utils import timezone

from ..db.deadlocks import retry_on_deadlock
from ..db.locks import locked
from ..db.writer import alias_of
from ..exceptions import StateError, UnknownRunError
from ..queues.acting import current_actor, signed
from ..queues.causation import own_run_pk
from ..queues.history import note
from ..queues.lanes import lane_of
from ..queues.lease import revoke
from ..queues.limits.release import awaits_turn
from ..queues.notifier import ring_after_commit
from ..queues.run import key_of
from ..values.json_text import storable
from .current_run import KIND, WakeReason
from .models import WorkflowRun
from .statuses import EDITED, FORKED, REWOUND, SKIPPED_WAIT, TRIED_NOW, WorkflowStatus

R = TypeVar("R")
DONE = {TRIED_NOW: "Tried now", SKIPPED_WAIT: "Skipped", EDITED: "Edited", FORKED: "Forked", REWOUND: "Rewound"}
"""What the history of who did what calls the outcomes of records."""


def run_with(pk: int) -> WorkflowRun:
    """Return the run. Raises ``UnknownRunError``."""
    found = WorkflowRun.objects.filter(pk=pk).first()
    if found is None:
        raise unknown_run(pk)
    return found


def unknown_run(pk: int | None) -> UnknownRunError:
    return UnknownRunError(
        f"There is no workflow run #{pk}: it was removed (RETENTION_RUNS), or its transaction has not committed."
    )


def repaired(run: WorkflowRun | int, what: str, work: Callable[[WorkflowRun, datetime], R]) -> tuple[WorkflowRun, R]:
    """Lock the run and let ``work`` change it, in one transaction; return the run, read again, and what ``work``
    returned. ``what``: the call, as in ``engine.rewind``.

    Raises ``UnknownRunError``, ``DefinitionError`` for what is no run, ``StateError`` inside a step of this run, and
    whatever ``work`` raises; then nothing is written.
    """
    pk, alias = key_of(run, WorkflowRun, what.replace("()", "(run)")), alias_of(WorkflowRun)
    if own_run_pk(KIND) == pk:
        raise StateError(f"{what}: run #{pk} is the run of the step that calls it. Return an outcome instead.", run)

    def write() -> R:
        with transaction.atomic(using=alias):
            row = locked(WorkflowRun.objects.filter(pk=pk)).first()
            if row is None:
                raise unknown_run(pk)
            result = work(row, timezone.now())
            ring_after_commit(alias, lane_of(row))
            return result

    result = retry_on_deadlock(alias, write)
    row = run if isinstance(run, WorkflowRun) else WorkflowRun(pk=pk)
    row.refresh_from_db()
    return row, result


def from_outside(run: WorkflowRun, **changes: Any) -> None:
    """Change a locked run and revoke its lease. Raises ``StateError`` if it was changed in the same transaction."""
    if not revoke(WorkflowRun.objects.filter(pk=run.pk, seq=run.seq), **changes):
        raise StateError(f"{run} was changed meanwhile. Read it again, and repeat the call.", run)


def record(run: WorkflowRun, action: str, what: str, reason: str, now: datetime) -> None:
    """Write to the history of a run ``what`` was done to it, why, and by whom, in the caller's transaction."""
    text = f"{what}: {reason}" if reason else f"{what}."
    if current_actor() is not None:
        text = signed(what, reason)
        note(run, DONE[action], reason)
    run.steps.create(
        step=run.current_step,
        visit=run.visit,
        attempt=0,
        started=None,
        finished=now,
        outcome=action,
        error=storable(text),
    )


def refuse(what: str, run: WorkflowRun, why: str) -> StateError:
    """Return the error for a run in whose state ``what`` makes no sense. ``why``: its state, and the fix."""
    return StateError(f"{what}: {run} {why}", run)


def check_rests(what: str, run: WorkflowRun) -> None:
    """Raise ``StateError`` for a run that has ended, is parked, is performed by a worker, or waits for its turn."""
    if run.status == WorkflowStatus.FAILED:
        raise refuse(what, run, "has failed and waits for nothing. Use engine.resume() or engine.rewind().")
    if run.is_finished:
        raise refuse(what, run, f"is {run.status} and waits for nothing. Start another with engine.fork().")
    if run.status == WorkflowStatus.PARKED:
        raise refuse(what, run, "is parked. Use engine.resume() once its cause is repaired.")
    if run.lease is not None:
        raise refuse(what, run, f"is performed by {run.holder} at this moment. Look at it again after that.")
    if run.status in (WorkflowStatus.RUNNING, WorkflowStatus.WAITING) and awaits_turn(KIND, run.pk):
        raise refuse(what, run, f"waits for its turn: {run.waits_for(timezone.now())}. Raise the limit, or cancel it.")


def try_now(run: WorkflowRun, now: datetime, what: str, reason: str) -> None:
    """Make a locked run due whose next attempt, or evaluation, is due later."""
    check_rests(what, run)
    if run.end_of_pause:
        raise refuse(what, run, f"waits for {run.end_of_pause}. Use engine.unpause() first.")
    if run.status == WorkflowStatus.SUSPENDED:
        raise refuse(what, run, f"waits for {run.waits_for(now)}. Use engine.signal() or engine.skip_wait().")
    if run.status != WorkflowStatus.WAITING or not run.is_retried:
        advice = "Use engine.skip_wait()." if is_asleep(run) else "It needs no help."
        raise refuse(what, run, f"is {run.status} and waits for {run.waits_for(now)}, not for a retry. {advice}")
    if run.wake_at is not None and run.wake_at <= now:
        return  # it is due already, and perhaps because of another call
    from_outside(run, wake_at=now)
    record(run, TRIED_NOW, "Tried now instead of later", reason, now)


def is_asleep(run: WorkflowRun) -> bool:
    """Return whether the run waits for the end of a ``sleep``, and for nothing else."""
    is_timer = run.status == WorkflowStatus.WAITING and run.wake_reason == WakeReason.TIMER
    return is_timer and not run.is_retried and run.branches is None
