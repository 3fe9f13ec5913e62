"""A worker's path for one run: load it, admit it, look for what cancels it, ask for its limits, execute its steps.

What this worker's code cannot do (a class, step or version that it does not have, a Context that no longer validates)
parks this run and no other.
"""

from __future__ import annotations

from ..exceptions import CodeError
from ..queues.advance import advance
from ..queues.limits.release import left
from ..queues.parking import reason_of, unpark
from ..state.encryption import Unreadable, check_readable
from ..values.clock import Clock
from .cancellation import cancel_if_occurred, watch
from .current_run import KIND
from .definitions import registered_workflow, workflow_of
from .models import Wait, WorkflowRun
from .run_limits import acquire_slots, release_unstarted
from .run_session import RunSession, last_entry, next_entry
from .statuses import WorkflowStatus
from .waits import finish_registration, is_there, overdue, time_out, waits_of


def perform_run(run: WorkflowRun, clock: Clock) -> None:
    """Load the run, admit it, acquire a slot of each limit, and execute step after step, each with its own commit."""
    if run.is_finished:
        advance(run, {"wake_at": None, "lease": None})
        return
    session = _load(run, clock)
    if session is None:
        return
    if not session.admit():
        release_unstarted(run, clock())
        return
    session.store_admission()
    is_watched = bool(session.definition.cancel_on) and run.ending is None and not run.is_late(clock())
    if is_watched and not watch(session):
        if session.definition.limits:
            left(KIND, run.pk, clock())
        return
    if acquire_slots(session):
        session.execute()


def _load(run: WorkflowRun, clock: Clock) -> RunSession | None:
    """Find the class, step and Context of the run.

    Return None if the run still waits, or was parked because this worker's code lacks one of them.
    """
    was_parked = run.status == WorkflowStatus.PARKED
    if was_parked:
        run.status = run.resumed_status
    is_late = run.is_late(clock())
    waits = waits_of(run) if run.status == WorkflowStatus.SUSPENDED and not is_late else []
    over = overdue(run, waits, clock())
    still_waits = bool(waits) and (over is None or is_there(run, waits))
    if still_waits and not was_parked and not isinstance(run.branches, Unreadable):
        _continue_to_wait(run, clock, waits)
        return None
    try:
        check_readable(run.branches, f"What has arrived for {run}")
        check_readable(run.ending, f"What {run} was when it ended")
        definition = workflow_of(run)
        entry = last_entry(run, definition) if is_late else next_entry(run, definition, over)
        session = RunSession(run, definition, entry, clock)
    except CodeError as error:
        run.park(reason_of(run, error), clock, awaiting_deploy=True)
        return None
    if was_parked:
        unpark(run, run.status)
    if still_waits:
        _continue_to_wait(run, clock, waits)
        return None
    if over is not None:
        time_out(run, over, clock())
    return session


def _continue_to_wait(run: WorkflowRun, clock: Clock, waits: list[Wait]) -> None:
    """Release a run that still waits: its worker had died before it had looked, or it was resumed. Then an event may
    have occurred meanwhile that cancels it."""
    definition = registered_workflow(run.name, run.version)
    if definition is None or not definition.cancel_on or not cancel_if_occurred(run, clock):
        finish_registration(run, clock, waits)
