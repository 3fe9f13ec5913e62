"""The statuses of runs, and outcomes in their history that have a meaning to the engine."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class WorkflowStatus(models.TextChoices):
    RUNNING = "running", _("Running")  # a step is due or running
    WAITING = "waiting", _("Waiting")  # for a time: planned, asleep, or in the backoff of a retry
    SUSPENDED = "suspended", _("Suspended")  # for a signal or an event
    COMPLETED = "completed", _("Completed")
    FAILED = "failed", _("Failed")  # or it was cancelled, and the path of its ``@on_cancel`` has failed
    CANCELLED = "cancelled", _("Cancelled")
    WITHDRAWN = "withdrawn", _("Withdrawn")  # its event withdrew it before it started: ``error`` says why
    PARKED = "parked", _("Parked")  # for an operator or for code: ``error`` says why


DEFERRED = "retry_after"
"""The outcome in the history of an attempt that raised ``RetryAfter`` and is not counted."""

LOST = "lost"
"""The outcome in the history of an attempt whose worker died or hung."""

FINISHED = (WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED, WorkflowStatus.WITHDRAWN)
MAY_AWAIT_SLOT = (WorkflowStatus.WAITING, WorkflowStatus.RUNNING)
"""Statuses of a run that may wait for a slot of a limit, with no ``wake_at`` before its deadline."""

STARTING = ("subflow", "wait_any", "wait_all")
"""Outcomes in the history that may have started child runs."""

TRIED_NOW = "try_now"
SKIPPED_WAIT = "skip_wait"
EDITED = "edit_context"
FORKED = "fork"
REWOUND = "rewind"
ACTIONS = (TRIED_NOW, SKIPPED_WAIT, EDITED, FORKED, REWOUND)
"""The outcomes in the history of what was done to a run from outside. These rows are no attempts: ``attempt`` is 0."""
