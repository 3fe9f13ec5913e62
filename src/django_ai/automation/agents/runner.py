"""A worker's path for one agent: load it (and activate it if it is new), then execute what is due in its mailbox."""

from __future__ import annotations

from django.db import connections

from ..db.errors import is_database_failure
from ..db.writer import alias_of
from ..exceptions import AutomationError, CodeError, LeaseLostError
from ..queues.advance import advance
from ..queues.parking import reason_of, unpark
from ..values.clock import Clock
from ..values.text import trace_of
from .activation import activate
from .agent_session import AgentSession
from .definitions import agent_of
from .models import AgentRun, AgentStatus


def perform_agent(run: AgentRun, clock: Clock) -> None:
    """Resolve the agent's class, activate a new agent, load its Context, and execute what is due in its mailbox."""
    if run.is_finished:
        advance(run, {"wake_at": None, "lease": None})
        return
    session = _open_session(run, clock)
    if session is None:
        return
    before = dict(run.__dict__)
    try:
        session.load()
        before = {}  # from here on the row in memory is as committed
        session.execute()
    except LeaseLostError:
        raise
    except Exception as error:
        run.__dict__.update(before)
        _park(run, error, clock)


def _open_session(run: AgentRun, clock: Clock) -> AgentSession | None:
    """Resolve the agent's class, and activate the agent if it is new.

    Return None if it is not active yet, or was parked because this worker's code lacks its class or event.
    """
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
    """Park an agent for an error that does not belong to a single execution; re-raise a database failure.

    The error depends on the code (a validator of its Context, a bug of ours) or on another singleton, so a later
    attempt may succeed.
    """
    if run.lease is None or is_database_failure(error, connections[alias_of(AgentRun)]):
        raise error
    reason = reason_of(run, error) if isinstance(error, AutomationError) else f"{run}: {trace_of(error)}"
    run.park(reason, clock, awaiting_deploy=True)
