"""A worker's path for one agent: load it (and activate it if it is new), then execute what is due in its mailbox."""

from __future__ import annotations

from django.db import connections

from ..db.errors import is_database_failure
from ..db.writer import alias_of
from ..exceptions import AutomationError, CodeError, LeaseLostError
from ..queues.lease import advance
from ..queues.parking import reason_of, unpark
from ..values.clock import Clock
from ..values.text import trace_of
from .activation import activate
from .agent_session import AgentSession
from .definitions import agent_of
from .models import AgentRun, AgentStatus


def perform_agent(run: AgentRun, clock: Clock) -> None:
    """Do what the agent is due for: load it, prepare it, and then try, decide and record, execution by execution."""
    if run.is_finished:
        advance(run, {"wake_at": None, "lease": None})
        return
    session = _load(run, clock)
    if session is None:
        return
    before = dict(run.__dict__)
    try:
        session.prepare()
        before = {}  # what is committed from here on stays
        session.work()
    except LeaseLostError:
        raise
    except Exception as error:
        run.__dict__.update(before)
        _park(run, error, clock)


def _load(run: AgentRun, clock: Clock) -> AgentSession | None:
    """Find the class of the agent, and bring it to life if it is new. None where it does not live yet, or was parked
    because this worker's code does not have it."""
    was_parked = run.status == AgentStatus.PARKED
    if was_parked:
        run.status = run.resumed_status
    try:
        definition = agent_of(run)
        if run.status == AgentStatus.PENDING and run.event is not None:
            run.event.check_known()
    except CodeError as error:
        run.park(reason_of(run, error), clock, awaiting_deploy=True)
        return None
    if run.status == AgentStatus.PENDING:
        if was_parked:
            unpark(run, run.status)
            was_parked = False
        if not activate(run, definition, clock):
            return None
    return AgentSession(run, definition, clock, was_parked=was_parked)


def _park(run: AgentRun, error: Exception, clock: Clock) -> None:
    """Park an agent for an error that no single execution is to blame for. It hangs on the code (a validator of its
    Context, a bug of ours), or on which singleton lives: another time it may go on. Raises a database failure."""
    if run.lease is None or is_database_failure(error, connections[alias_of(AgentRun)]):
        raise error
    reason = reason_of(run, error) if isinstance(error, AutomationError) else f"{run}: {trace_of(error)}"
    run.park(reason, clock, awaiting_deploy=True)
