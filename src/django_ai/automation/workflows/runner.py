"""A worker's path for one run: load it, admit it, execute its steps.

What this worker's code cannot do (a class, step or version that it does not have, a Context that no longer validates)
parks this run and no other.
"""

from __future__ import annotations

from ..exceptions import CodeError
from ..queues.advance import advance
from ..queues.parking import reason_of, unpark
from ..values.clock import Clock
from .definitions import workflow_of
from .models import WorkflowRun, WorkflowStatus
from .run_session import RunSession, next_entry
from .waits import finish_registration, is_there, time_out, waits_of


def perform_run(run: WorkflowRun, clock: Clock) -> None:
    """Load the run, admit it, and execute step after step, each with a commit of its own."""
    if run.is_finished:
        advance(run, {"wake_at": None, "lease": None})
        return
    session = _load(run, clock)
    if session is None or not session.admit():
        return
    session.store_version()
    session.execute()


def _load(run: WorkflowRun, clock: Clock) -> RunSession | None:
    """Find the class, step and Context of the run.

    Return None if the run still waits, or was parked because this worker's code lacks one of them.
    """
    was_parked = run.status == WorkflowStatus.PARKED
    if was_parked:
        run.status = run.resumed_status
    waits = waits_of(run) if run.status == WorkflowStatus.SUSPENDED else []
    still_waits = bool(waits) and (all(not wait.is_over(clock()) for wait in waits) or is_there(run, waits))
    if still_waits and not was_parked:
        finish_registration(run, clock, waits)
        return None
    try:
        definition = workflow_of(run)
        session = RunSession(run, definition, next_entry(run, definition, waits), clock)
    except CodeError as error:
        run.park(reason_of(run, error), clock, awaiting_deploy=True)
        return None
    if was_parked:
        unpark(run, run.status)
    if still_waits:
        finish_registration(run, clock, waits)
        return None
    if waits:
        time_out(run, waits)
    return session
