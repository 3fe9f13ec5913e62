"""Runs for the events of a window (``Debounce``, ``Batch``): how they are inserted, closed, and ended from outside.

The run of an open window is WAITING until the end of the window. Its ``origin_key`` is the key of the window; it has
none once the window is closed (``events/windows``).
"""

from __future__ import annotations

from datetime import datetime

from django.db.models import Q

from ..events.claim_lookup import claim_against
from ..events.models import Event, EventClaim
from ..events.timing import depth_after
from ..events.windows import WindowKind, close, discard, events_of, register_window_kind
from ..exceptions import UnknownWorkflowError
from ..queues.advance import advance
from ..queues.causation import Owner, breaks_chain
from ..queues.positions import lower_bound
from ..queues.tracing import linked
from ..values.clock import Clock
from ..values.windows import Debounce, Window
from .current_run import KIND
from .definitions import WorkflowDefinition, newest_workflows
from .models import WorkflowRun
from .starting import origin_key_of, priority_by_event
from .statuses import FINISHED, WorkflowStatus
from .transitions import ended


def is_window_run(run: WorkflowRun) -> bool:
    """Return whether the run, which has no Context yet, handles the events of a window."""
    return run.event_id is not None and run.origin_key != origin_key_of(run.event_id, run.name)


def register_windows() -> None:
    """Let workflows collect events."""
    register_window_kind(
        WindowKind(
            KIND,
            WorkflowRun,
            "origin_key",
            open=Q(status=WorkflowStatus.WAITING, started_at=None),
            ended=Q(status__in=FINISHED),
            find=_window_of,
            new_row=_new_run,
            closed_key=lambda run: None,
        )
    )


def _newest(name: str) -> WorkflowDefinition | None:
    return next((each for each in newest_workflows() if each.name == name), None)


def _window_of(name: str) -> Window | None:
    definition = _newest(name)
    return None if definition is None else definition.window


def _new_run(event: Event, name: str, key: str, wake_at: datetime, now: datetime) -> WorkflowRun:
    """Return the unsaved run of an open window. ``event``: its first event."""
    definition = _newest(name)
    assert definition is not None
    waits = isinstance(definition.window, Debounce) and breaks_chain(definition.window.period)
    return WorkflowRun(
        name=name,
        version=definition.version,
        status=WorkflowStatus.WAITING,
        current_step=definition.start,
        created_at=now,
        wake_at=wake_at,
        event=event,
        position=lower_bound(),
        entity_type=event.entity_type,
        entity_id="" if event.is_free else event.entity_id,
        origin_key=key,
        queue=definition.queue,
        priority=priority_by_event(event, definition),
        caused_by=f"event:{event.pk}",
        depth=0 if waits else depth_after(event, None),
        trace_context=linked(event.trace_context) if waits else event.trace_context,
    )


def check_still_collects(run: WorkflowRun, definition: WorkflowDefinition) -> None:
    """Raise ``UnknownWorkflowError`` if the code no longer collects the events of this run."""
    if definition.window is None:
        raise UnknownWorkflowError(
            f"{run}: workflow {run.name!r} no longer declares debounce= or batch=, and this run is for several events. "
            "Declare it again, and the run resumes automatically. Or cancel the run."
        )


def take_events(run: WorkflowRun, definition: WorkflowDefinition, clock: Clock) -> list[Event]:
    """Close the window of the run, if it is open, and return its events. Where there are none, the run is cancelled."""
    if run.origin_key is not None:
        close(run, KIND, run.name, clock())
    found = events_of(KIND, run.pk)
    if found and not definition.ignores_claims and EventClaim.objects.exists():
        owner = Owner(KIND, run.pk, definition.namespace)
        found = [event for event in found if claim_against(event, owner, clock()) is None]
    if not found:
        reason = "Skipped: no event was left in its window that another run had not claimed."
        advance(run, ended(WorkflowStatus.CANCELLED, reason, clock()))
    return found


def end_window(run: WorkflowRun) -> None:
    """Let what waits in the window of a run end with the run, in the caller's transaction."""
    if run.started_at is None and run.origin_key is not None and is_window_run(run):
        discard(KIND, run.origin_key, run.pk)
        WorkflowRun.objects.filter(pk=run.pk).update(origin_key=None)
