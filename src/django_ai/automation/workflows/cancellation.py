"""``cancel_on=``, the run's side: a run registers the events that cancel it, and looks for what has occurred already.

Before a run asks for its limits and enters its first step, a commit of its own stores its Context and a ``Wait`` for
each ``On(...)``, with the visit ``WHOLE_RUN``: it stays while the run lives. An event commits first, then finds such
rows under its routing keys (``delivery``), and ends their runs as ``engine.cancel`` does. A run commits its rows first
and then looks for events, as for every other wait (``waits``), so the side that commits last sees the other.

A worker looks whenever it has claimed the run and is about to enter a step. So a worker that dies between the commit
and the look loses nothing, and a run that had failed is cancelled when it is resumed.

What occurs after ``Wait.since`` counts: after the position of the run. A planned run receives signals and events from
its date on, so its position changes when it starts; it is cancelled by what has occurred since it was planned. If it is
planned for a later date, it registers again, with the Context that it has then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..queues.attempt import Progress
from ..queues.limits.acquire import RowSlots
from ..queues.positions import bound_at
from ..state.contexts import dump_context
from ..values.clock import Clock
from .admission import MAX_CLOCK_SKEW
from .current_run import KIND
from .delivery import cancelled_by
from .ending import end_runs
from .models import WHOLE_RUN, Wait, WorkflowRun
from .registration import cancelling
from .statuses import WorkflowStatus
from .transitions import deadline_change
from .waits import first_arrival

if TYPE_CHECKING:
    from .run_session import RunSession


def watch(session: RunSession) -> bool:
    """Register the events that cancel the run, unless that was done, and look for what has occurred; return whether
    the run continues."""
    rows = _rows_of(session.run) or _register(session)
    return bool(rows) and not _cancel(session.run, rows, session.clock)


def cancel_if_occurred(run: WorkflowRun, clock: Clock) -> bool:
    """Cancel a run if one of the events that it has registered has occurred; return whether that was so."""
    return _cancel(run, _rows_of(run), clock)


def _rows_of(run: WorkflowRun) -> list[Wait]:
    return list(run.waits.filter(visit=WHOLE_RUN).order_by("pk"))


def _cancel(run: WorkflowRun, rows: list[Wait], clock: Clock) -> bool:
    reason = _reason(run, rows)
    if reason:
        end_runs(WorkflowRun.objects.filter(pk=run.pk), WorkflowStatus.CANCELLED, reason, clock())
    return bool(reason)


def _reason(run: WorkflowRun, rows: list[Wait]) -> str:
    """Return why the run is cancelled: something that ``rows`` select has arrived. Empty: nothing has."""
    message = first_arrival(run, rows)
    return "" if message is None else cancelled_by(message.row)


def _register(session: RunSession) -> list[Wait]:
    """Commit the events that cancel the run, with its Context if that is new; return their rows. Return none if the
    attempt has failed, or the lease was lost."""
    run = session.run
    rows: list[Wait] = []
    if session.definition.limits:
        session.row_slots = RowSlots(KIND, run.pk)  # a failed attempt releases them
    session.begin(session.entry)

    def work() -> Progress:
        context = session.make_context()
        assert context is not None
        rows.extend(_new_rows(session, context))
        changes: dict[str, Any] = {"losses": run.losses}
        if run.has_no_context:
            changes |= {"data": dump_context(context, f"The Context of {run}"), **deadline_change(run)}
        session.context = context  # not earlier: a run that fails to register makes its Context again
        return Progress(changes, inserts=tuple(rows), prepares=True)

    committed = session.run_attempt(session.entry, work, atomic=True)
    return rows if committed and run.lease is not None else []


def _new_rows(session: RunSession, context: BaseModel) -> list[Wait]:
    """Return the unsaved rows of the events that cancel the run, with the values of its Context."""
    run, definition = session.run, session.definition
    since = run.position
    if run.planned and run.started_at is None:
        # A run that was planned without ``cancel_on`` has no position.
        since = session.position or bound_at(run.created_at - MAX_CLOCK_SKEW, session.clock())
    return [cancelling(run, on, definition.namespace, context, since) for on in definition.cancel_on]
