"""The tables of workflows, one module for each: import the models from here."""

from ..statuses import FINISHED, WorkflowStatus
from ..wait_keys import WHOLE_RUN
from .run import WorkflowRun, WorkflowRunQuerySet
from .signal import Signal
from .step_execution import StepExecution
from .wait import IS_CANCELLING, IS_OPEN, Wait, WaitQuerySet

__all__ = [
    "FINISHED",
    "IS_CANCELLING",
    "IS_OPEN",
    "WHOLE_RUN",
    "Signal",
    "StepExecution",
    "Wait",
    "WaitQuerySet",
    "WorkflowRun",
    "WorkflowRunQuerySet",
    "WorkflowStatus",
]
