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
from .waits import is_there, look_again, time_out, waits_of


def perform_run(run: WorkflowRun, clock: Clock) -> None:
    """Do what the run is due for: load it, prepare it, and then try, decide and record, step by step."""
    if run.is_finished:
        advance(run, {"wake_at": None, "lease": None})
        return
    session = _load(run, clock)
    if session is not None and session.prepare():
        session.work()


def _load(run: WorkflowRun, clock: Clock) -> RunSession | None:
    """Find the class, step and Context of the run. None where it goes on waiting, or was parked because this worker's
    code does not have them."""
    was_parked = run.status == WorkflowStatus.PARKED
    if was_parked:
        run.status = run.resumed_status
    waits = waits_of(run) if run.status == WorkflowStatus.SUSPENDED else []
    rests = bool(waits) and (all(not wait.is_over(clock()) for wait in waits) or is_there(run, waits))
    if rests and not was_parked:
        look_again(run, clock, waits)
        return None
    try:
        definition = workflow_of(run)
        session = RunSession(run, definition, next_entry(run, definition, waits), clock)
    except CodeError as error:
        run.park(reason_of(run, error), clock, awaiting_deploy=True)
        return None
    if was_parked:
        unpark(run, run.status)
    if rests:
        look_again(run, clock, waits)
        return None
    if waits:
        time_out(run, waits)
    return session
