"""The public names of workflows."""

from ..queues.causation import idempotency_key
from ..values.limits import Concurrency, RateLimit, Singleton, Throttle
from ..values.retry import GiveUp, Retry, RetryAfter
from ..values.windows import Batch, Debounce
from .cancel_on import On
from .choices import wait_all, wait_any
from .current_run import Wake, WakeReason, get_context, get_run, get_wake
from .decorators import Workflow, event_workflow, step, workflow
from .engine import engine
from .hooks import on_cancel, on_fail
from .outcomes import Outcome, complete, fail, goto, run_subflow, sleep, wait, wait_for_event

__all__ = [
    "Batch",
    "Concurrency",
    "Debounce",
    "GiveUp",
    "On",
    "Outcome",
    "RateLimit",
    "Retry",
    "RetryAfter",
    "Singleton",
    "Throttle",
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
    "on_cancel",
    "on_fail",
    "run_subflow",
    "sleep",
    "step",
    "wait",
    "wait_all",
    "wait_any",
    "wait_for_event",
    "workflow",
]
