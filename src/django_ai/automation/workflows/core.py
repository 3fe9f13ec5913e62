"""The public names of workflows."""

from ..queues.causation import idempotency_key
from ..values.retry import Retry
from .current import Wake, WakeReason, get_context, get_run, get_wake
from .decorators import Workflow, event_workflow, on_fail, step, workflow
from .engine import engine
from .outcomes import Outcome, complete, fail, goto, run_subflow, sleep, wait, wait_for_event

__all__ = [
    "Outcome",
    "Retry",
    "Wake",
    "WakeReason",
    "Workflow",
    "complete",
    "engine",
    "event_workflow",
    "fail",
    "get_context",
    "get_run",
    "get_wake",
    "goto",
    "idempotency_key",
    "on_fail",
    "run_subflow",
    "sleep",
    "step",
    "wait",
    "wait_for_event",
    "workflow",
]
